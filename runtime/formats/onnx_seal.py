"""The seal of an ONNX file of ours: its last bytes say its precision, and length and SHA-256 of all bytes before them.

What a file says of itself stays in it when other programs change its graph: quantizers keep every metadata property.
The seal no longer fits then. So the runtime believes a sealed file, needs no library that reads ONNX for it, and knows
that all of its weights are inside.

A file of the sealed length with other bytes was changed, and is refused. One of another length was saved anew by
another program: its old seal is a property like any other.

To everybody else the seal is one more metadata property: it is a field of `ModelProto`, which Protocol Buffers allow to
be anywhere (https://protobuf.dev/programming-guides/encoding/#order).
"""

from __future__ import annotations

import hashlib

from diffusion.errors import InputError
from runtime.formats.precision import ENGINE_PRECISIONS

SEAL_KEY = "ddpm-rt-seal"

# `metadata_props` of ModelProto, `key` and `value` of StringStringEntryProto, as tags of fields with a length.
_PROPERTY, _KEY, _VALUE = b"\x72", b"\x0a", b"\x12"
_HASH_CHARACTERS = 64
# The names of all precisions that are exported are equally long.
_VALUE_BYTES = len(f"{0:010d} {ENGINE_PRECISIONS[0]} ") + _HASH_CHARACTERS


def sealed(content: bytes, precision: str) -> bytes:
    """A serialized model with its seal.

    Args:
        content: the model, all of its weights inside.
        precision: of its arithmetic, one of `ENGINE_PRECISIONS`.
    """
    return content + _start(len(content)) + _end(precision, hashlib.sha256(content).hexdigest())


def sealed_precision(num_bytes: int, sha256: str, tail: bytes) -> str | None:
    """The precision of a file; None if it has no seal of ours, or was saved anew by another program.

    Args:
        num_bytes: of all but the last `SEAL_BYTES` of the file.
        sha256: of these, hexadecimal.
        tail: the last `SEAL_BYTES`.

    Raises:
        InputError: it has the length that was sealed, and is not what was sealed.
    """
    start = _start(num_bytes)
    if not tail.startswith(start):
        return None
    precision = next((name for name in ENGINE_PRECISIONS if tail == start + _end(name, sha256)), None)
    if precision is None:
        raise InputError(
            f"was changed after it was exported: its first {num_bytes} bytes have the SHA-256 {sha256}, and its seal "
            f"says {tail[len(start) :]!r}; export it again, or take the metadata property {SEAL_KEY} out of it if the "
            "change is meant"
        )
    return precision


def _start(num_bytes: int) -> bytes:
    """Of the seal of a model of so many bytes: all but the precision and the hash."""
    key = _KEY + bytes([len(SEAL_KEY)]) + SEAL_KEY.encode()
    entry = key + _VALUE + bytes([_VALUE_BYTES])
    # Lengths below 128 are one byte.
    return _PROPERTY + bytes([len(entry) + _VALUE_BYTES]) + entry + f"{num_bytes:010d} ".encode()


def _end(precision: str, sha256: str) -> bytes:
    return f"{precision} {sha256}".encode()


SEAL_BYTES = len(_start(0) + _end(ENGINE_PRECISIONS[0], "0" * _HASH_CHARACTERS))
"""Of every seal."""
