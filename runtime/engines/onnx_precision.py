"""In which precision an ONNX file computes: by its metadata, read before any library opens the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from diffusion.errors import InputError

PRECISION_KEY = "ddpm-rt-precision"
"""The metadata property of an ONNX file whose arithmetic is not float32: `fp16` or `bf16`."""

LOW_PRECISIONS = ("fp16", "bf16")

# Protocol Buffers: fields of onnx.ModelProto and of onnx.StringStringEntryProto, and the wire types.
_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2
_VARINT, _EIGHT_BYTES, _WITH_LENGTH, _FOUR_BYTES = 0, 1, 2, 5
# A process with an explicit schedule of a million betas has fewer; what claims more is no metadata of ours.
_MOST_ENTRY_BYTES = 2**26


def onnx_precision(path: Path) -> str:
    """`fp32`, `fp16` or `bf16`; `fp32` for a file that says nothing, or that is no ONNX file at all.

    Raises:
        InputError: a precision that this version does not know.
    """
    found = _metadata(path).get(PRECISION_KEY)
    if found is None:
        return "fp32"
    if found not in LOW_PRECISIONS:
        raise InputError(
            f"{path}: metadata {PRECISION_KEY} is {found!r}, expected {' or '.join(LOW_PRECISIONS)}; "
            "make the file again with `python -m export.to_onnx`"
        )
    return found


def _metadata(path: Path) -> dict[str, str]:
    """The metadata properties of an ONNX file; none where the bytes are no such file, which its reader reports."""
    found: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            end = os.fstat(file.fileno()).st_size
            while file.tell() < end:
                field, size = _next_field(file)
                if field != _METADATA_PROPS:
                    file.seek(size, os.SEEK_CUR)  # the graph's gigabytes are not read
                elif size <= _MOST_ENTRY_BYTES:
                    key, value = _entry(file, file.tell() + size)
                    found[key] = value
                else:
                    return {}
    except (OSError, ValueError, OverflowError):
        return {}
    return found


def _entry(file: BinaryIO, end: int) -> tuple[str, str]:
    texts = {_KEY: "", _VALUE: ""}
    while file.tell() < end:
        field, size = _next_field(file)
        if file.tell() + size > end:
            raise ValueError("longer than what holds it")
        texts[field] = file.read(size).decode()
    return texts[_KEY], texts[_VALUE]


def _next_field(file: BinaryIO) -> tuple[int, int]:
    """The number of the field that begins here and the size of what follows of it, in bytes."""
    tag = _varint(file)
    field, wire_type = tag >> 3, tag & 7
    if wire_type == _VARINT:
        _varint(file)
        return field, 0
    if wire_type == _WITH_LENGTH:
        return field, _varint(file)
    if wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
        return field, 8 if wire_type == _EIGHT_BYTES else 4
    raise ValueError("not Protocol Buffers")


def _varint(file: BinaryIO) -> int:
    number = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("truncated")
        number |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return number
    raise ValueError("not Protocol Buffers")
