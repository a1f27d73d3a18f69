"""Fields of a JSON object, each taken as what it must be, or refused in one line that names the file and the field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion.errors import InputError
from diffusion.json_text import parse_json_object, read_json_object
from diffusion.number_checks import is_whole, shown
from runtime.formats.digest import DIGEST, check

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WORDS = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


class Fields:
    """An object of a JSON file.

    Args:
        values: by name.
        path: of the file.
        remedy: the end of every error.
        inside: put before the names of fields in an error, such as `engine: `.
    """

    def __init__(self, values: Mapping[str, Any], path: Path | str, remedy: str, inside: str = "") -> None:
        self.values, self._path, self._remedy, self._inside = values, path, remedy, inside

    def wrong(self, name: str, found: object, expected: str) -> InputError:
        """The error for a field that is not as it must be."""
        return InputError(f"{self._path}: {self._inside}{name} is {shown(found)}, expected {expected}; {self._remedy}")

    def get(self, name: str, kind: type, what: str | None = None, may_be_empty: bool = False) -> Any:
        """A field that must be there.

        Args:
            name: of the field.
            kind: of its value.
            what: is expected, for the error.
            may_be_empty: whether a text, a list or an object may be.

        Raises:
            InputError: it is missing, empty or of another type.
        """
        value = self.values.get(name)
        if type(value) is not kind or (not may_be_empty and value in ("", [], {})):
            raise self.wrong(name, value, what or _WORDS[kind])
        return value

    def optional(self, name: str, kind: type, default: Any = None) -> Any:
        """A field that may be missing or null. Raises InputError if it is of another type."""
        value = self.values.get(name)
        if value is None:
            return default
        if type(value) is not kind:
            raise self.wrong(name, value, _WORDS[kind])
        return value

    def inner(self, name: str) -> Fields:
        """The fields of an object that may be missing. Raises InputError for anything else."""
        return Fields(self.optional(name, dict, {}), self._path, self._remedy, f"{self._inside}{name}: ")

    def sha256(self, name: str, optional: bool = False) -> Any:
        """A SHA-256 in hexadecimal, or None where it may be missing. Raises InputError for anything else."""
        value = self.values.get(name)
        if not (optional and value is None) and not (isinstance(value, str) and _SHA256.fullmatch(value)):
            raise self.wrong(name, value, "a SHA-256 in hexadecimal")
        return value

    def list_of(self, name: str, kind: type, longest: int = 2**16) -> tuple[Any, ...]:
        """A list that may be missing, all of one type. Raises InputError for another type, or more entries."""
        values = self.optional(name, list, [])
        if len(values) > longest or any(type(value) is not kind for value in values):
            raise self.wrong(name, values, f"a list of at most {longest}, each {_WORDS[kind]}")
        return tuple(values)

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """A text that is one of these, whatever its case. Raises InputError as `get`, or for another."""
        value = str(self.get(name, str)).lower()
        if value not in choices:
            raise self.wrong(name, value, " or ".join(choices))
        return value

    def check_names(self, written: Mapping[str, Any]) -> None:
        """Refuse a field, at any depth, that this version does not know, and one that it would not find.

        A default in the place of a field that was lost would be another value, without a word.

        Args:
            written: the object that is written of what was read of this one.

        Raises:
            InputError: a field that stands in one of them alone.
        """
        odd = _first_odd_name(self.values, written)
        if odd is not None:
            name, is_missing = odd
            what = (
                "is missing; " if is_missing else "is not known to this version; install the version that wrote it, or "
            )
            raise InputError(f"{self._path}: {self._inside}the field {shown(name)} {what}{self._remedy}")


def _first_odd_name(found: object, written: object, inside: str = "") -> tuple[str, bool] | None:
    """The first name that stands in one alone, dotted, and whether it is missing in `found`."""
    if isinstance(found, list) and isinstance(written, list):
        pairs = [("", *pair) for pair in zip(found, written, strict=False)]
    elif isinstance(found, Mapping) and isinstance(written, Mapping):
        for name in (*written, *found):
            if name not in found or name not in written:
                return f"{inside}{name}", name not in found
        pairs = [(f"{name}.", value, written[name]) for name, value in found.items()]
    else:
        return None
    inner = (_first_odd_name(one, other, inside + name) for name, one, other in pairs)
    return next((each for each in inner if each is not None), None)


def read_fields(
    path: Path, version: int, remedy: str, missing: str | None = None, undigested: int | None = None
) -> Fields:
    """The object of a JSON file of ours: its format number known, its digest checked and left out.

    Args:
        path: of the file.
        version: of the format that is read.
        remedy: the end of the line for a file that cannot be used.
        missing: the same where there is no file; `remedy` if None.
        undigested: an earlier format, whose files have no digest, that is read too.

    Raises:
        InputError: as `read_json_object`, an object of another format, or one that was changed.
    """
    return _of_format(read_json_object(path, remedy, missing), path, version, remedy, undigested)


def parse_fields(content: bytes, place: str, version: int, remedy: str) -> Fields:
    """As `read_fields`, of a file's content; `place` names the file in errors."""
    return _of_format(parse_json_object(content, place, remedy), place, version, remedy)


def _of_format(
    values: dict[str, Any], path: Path | str, version: int, remedy: str, undigested: int | None = None
) -> Fields:
    found = values.get("format")
    if is_whole(found) and found == undigested and DIGEST not in values:
        return Fields(values, path, remedy)
    if not is_whole(found) or found != version:
        raise InputError(
            f"{path}: format is {shown(found)}, this version reads {version}; "
            f"install the version that wrote it, or {remedy}"
        )
    return Fields(check(values, str(path), remedy), path, remedy)
