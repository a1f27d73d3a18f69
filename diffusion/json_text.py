"""JSON from untrusted files: parsed within limits, or refused in one line.

Python's parser accepts what JSON does not have (NaN, repeated names), and raises four kinds of exceptions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusion.errors import InputError
from diffusion.number_checks import shown
from diffusion.regular_files import read_regular

MAX_JSON_BYTES = 2**26
"""Largest file that is read; the betas of the longest schedule take a third of it."""
MAX_JSON_VALUES = 2**21
"""Most values in one text, twice the betas of the longest schedule: what Python makes of `[[],[],…]` takes thirty times
the text's memory."""


def parse_json(text: str | bytes, with_infinity: bool = False) -> Any:
    """The value that a JSON text describes.

    Args:
        text: bytes are UTF-8.
        with_infinity: whether it may hold NaN and the infinities, which JSON has not but Python writes.

    Raises:
        InputError: not JSON, nested too deeply, a name twice in one object, a number that Python does not read, or more
            than `MAX_JSON_VALUES` values.
    """
    num = sum(text.count(mark) if isinstance(text, str) else text.count(mark.encode()) for mark in "[{,:")
    if num > MAX_JSON_VALUES:
        raise InputError(f"not JSON of ours (it has {num} values and names, expected at most {MAX_JSON_VALUES})")
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        constant = float if with_infinity else _refuse_constant
        return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=constant)
    except InputError:
        raise
    except RecursionError:
        raise InputError("not JSON that can be read (it is nested too deeply)") from None
    except ValueError as error:  # undecodable bytes and numbers of too many digits among them
        raise InputError(f"not JSON ({error})") from None


def read_json(path: Path, remedy: str, missing: str | None = None, with_infinity: bool = False) -> Any:
    """The value that a JSON file describes.

    Args:
        path, remedy, missing: as of `read_json_bytes`.
        with_infinity: as of `parse_json`.

    Raises:
        InputError: as `read_json_bytes`, or it is not JSON.
    """
    content = read_json_bytes(path, remedy, missing)
    try:
        return parse_json(content, with_infinity)
    except InputError as error:
        raise InputError(f"{path}: {error}; {remedy}") from None


def read_json_bytes(path: Path, remedy: str, missing: str | None = None) -> bytes:
    """The content of a JSON file, not parsed yet.

    Args:
        path: of a regular file; a pipe or a device is not waited for.
        remedy: the end of the line for a file that cannot be used.
        missing: the same where there is no file; `remedy` if None.

    Raises:
        InputError: no file, no regular file, one that is too large, or cannot be read.
    """
    return read_regular(path, MAX_JSON_BYTES, remedy, missing)


def read_json_object(
    path: Path, remedy: str, missing: str | None = None, with_infinity: bool = False
) -> dict[str, Any]:
    """As `read_json`, for a file that must hold an object."""
    return _object(read_json(path, remedy, missing, with_infinity), path, remedy)


def parse_json_object(content: bytes, place: Path | str, remedy: str) -> dict[str, Any]:
    """The object that the content of a file describes.

    Args:
        content: of the file.
        place: of the file, for the error.
        remedy: the end of the line for a file that cannot be used.

    Raises:
        InputError: as `parse_json`, or it holds something else.
    """
    try:
        value = parse_json(content)
    except InputError as error:
        raise InputError(f"{place}: {error}; {remedy}") from None
    return _object(value, place, remedy)


def _object(value: Any, place: Path | str, remedy: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{place}: holds {json_kind(value)}, expected a JSON object; {remedy}")
    return value


def json_kind(value: object) -> str:
    """What JSON calls a value of this type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    kinds = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), type(value).__name__)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise InputError(f"not JSON with one meaning: the field {shown(name)} stands twice in one object")
        fields[name] = value
    return fields


def _refuse_constant(name: str) -> Any:
    raise InputError(f"not JSON (it holds {name})")
