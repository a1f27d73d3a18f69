"""The inputs of a network's file that are conditions: named by its process, and of the type and shape it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion.conditions import Condition
from diffusion.errors import InputError
from diffusion.process import METADATA_KEY, Process
from runtime.formats.tensor_spec import TensorSpec


def metadata_of(path: Path, session: Any) -> str | None:
    """What ONNX Runtime says that a file's metadata hold of its process; None where it is nothing.

    Raises:
        InputError: metadata that are no text.
    """
    try:
        text: str | None = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, metadata {METADATA_KEY}: not UTF-8 ({error}); export again") from None
    return text


def stored_conditions(path: Path, metadata: str | None) -> tuple[Condition, ...]:
    """The conditions of an ONNX file by its metadata; none where it has none.

    Raises:
        InputError: metadata that are no process.
    """
    if metadata is None:
        return ()
    return Process.from_json_text(metadata, f"{path}, metadata {METADATA_KEY}").conditions


def without_conditions(
    path: Path, inputs: Sequence[TensorSpec], conditions: Sequence[Condition], types: Mapping[str, str]
) -> list[TensorSpec]:
    """The other inputs: x and t.

    Args:
        path: of the file.
        inputs: all of them.
        conditions: of its process.
        types: the backend's words for the types of conditions.

    Raises:
        InputError: a condition that is no input, or one of another type or shape.
    """
    by_name = {entry.name: entry for entry in inputs}
    for condition in conditions:
        found = by_name.pop(condition.name, None)
        expected = f"{types[condition.type]} {['N', *condition.shape]}"
        if found is None:
            names = ", ".join(entry.name for entry in inputs)
            raise InputError(
                f"{path}: its process has the condition {condition.name}, and its inputs are {names}; expected "
                f"{condition.name} ({expected}) among them; export again"
            )
        sizes = found.shape[1:]
        open_or_equal = len(sizes) == len(condition.shape) and all(
            not isinstance(size, int) or size == wanted for size, wanted in zip(sizes, condition.shape, strict=True)
        )
        if found.element_type != types[condition.type] or not found.shape or not open_or_equal:
            raise InputError(
                f"{path}: input {found.name} is {found.element_type} {list(found.shape)}, expected {expected}; "
                "export again"
            )
    return list(by_name.values())
