"""Tensors of somebody else's file: safetensors, or a pickle of PyTorch, of which nothing is executed.

What a file claims is compared with its size before anything is made of it: a zip archive may unpack to a thousand times
its size, and each byte of a pickle may become a list.
"""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from commands.errors import reason
from diffusion.errors import InputError
from diffusion.json_text import parse_json

# Names, shapes and plain values of a checkpoint; a tensor takes about a hundred bytes of them.
_MAX_PICKLE_BYTES = 2**22
# What PyTorch before 1.6 wrote is a file of so many pickles and then the numbers.
_PICKLES, _MAX_OPCODES = 5, 2**20


def load_safetensors(path: Path, content: bytes, remedy: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name.

    Args:
        path: of the file, for an error.
        content: all of it.
        remedy: the end of the line for a file that cannot be used.

    Raises:
        InputError: truncated, or not such a file.
    """
    expected = _declared_bytes(content)
    if len(content) < expected:
        raise InputError(f"{path}: truncated: found {len(content)} bytes, expected {expected}; {remedy}")
    try:
        return dict(safetensors.torch.load(content))
    except Exception as error:  # safetensors' own exception, or torch's for a type it does not know
        raise InputError(f"{path}: not a safetensors file ({reason(error)}); {remedy}") from error


def load_pickle(path: Path, content: bytes, remedy: str) -> Any:
    """Tensors, tables and plain values that `torch.save` wrote; no code in it runs.

    Args:
        path, content, remedy: as of `load_safetensors`.

    Raises:
        InputError: a file that claims more than it holds.
        Exception: whatever PyTorch raises for a damaged pickle, or one of other objects.
    """
    if content.startswith(b"PK"):
        _check_archive(path, content, remedy)
    else:
        _check_old_pickle(path, content, remedy)
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _declared_bytes(content: bytes) -> int:
    # A safetensors file: the header's length (8 bytes, little-endian), the header (JSON), the tensors.
    header = int.from_bytes(content[:8], "little")
    expected = 8 + max(header, 2)
    try:
        entries = parse_json(content[8 : 8 + header])
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        return expected + max((end for end in ends if isinstance(end, int)), default=0)
    except (InputError, TypeError, AttributeError, KeyError, IndexError):  # safetensors will complain
        return expected


def _check_archive(path: Path, content: bytes, remedy: str) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
    except Exception:  # a damaged one, which PyTorch will say
        return
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise InputError(
                f"{path}: its part {json.dumps(entry.filename[:60])} is compressed, which torch.save does not do, "
                f"expected it as it is; {remedy}"
            )
        if entry.filename.endswith("data.pkl") and entry.file_size > _MAX_PICKLE_BYTES:
            raise InputError(
                f"{path}: its table of contents has {entry.file_size} bytes, expected at most {_MAX_PICKLE_BYTES}; "
                f"{remedy}"
            )
    declared = sum(entry.file_size for entry in entries)
    if declared > len(content):
        raise InputError(f"{path}: its parts claim {declared} bytes, but it has {len(content)}; {remedy}")


def _check_old_pickle(path: Path, content: bytes, remedy: str) -> None:
    stream, num = io.BytesIO(content), 0
    try:
        for _ in range(_PICKLES):
            for _ in pickletools.genops(stream):
                num += 1
                if num > _MAX_OPCODES:
                    raise InputError(
                        f"{path}: is a pickle of more than {_MAX_OPCODES} parts, expected a table of tensors; {remedy}"
                    )
    except InputError:
        raise
    except Exception:  # damaged, which PyTorch will say
        return
