"""The seal of an ONNX file of ours: its last bytes say its precision and the SHA-256 of all bytes before them.

What a file says of itself stays in it when other programs change its graph: quantizers keep every metadata property.
The seal no longer fits then. So the runtime believes a sealed file, needs no library that reads ONNX for it, and knows
that all of its weights are inside.

To everybody else the seal is one more metadata property: it is a field of `ModelProto`, which Protocol Buffers allow to
be anywhere (https://protobuf.dev/programming-guides/encoding/#order).
"""

from __future__ import annotations

import hashlib

from runtime.formats.precision import ENGINE_PRECISIONS

SEAL_KEY = "ddpm-rt-seal"

# `metadata_props` of ModelProto, `key` and `value` of StringStringEntryProto, as tags of fields with a length.
_PROPERTY, _KEY, _VALUE = b"\x72", b"\x0a", b"\x12"


def sealed(content: bytes, precision: str) -> bytes:
    """A serialized model with its seal.

    Args:
        content: the model, all of its weights inside.
        precision: of its arithmetic, one of `ENGINE_PRECISIONS`.
    """
    return content + _seal(precision, hashlib.sha256(content).hexdigest())


def sealed_precision(body_sha256: str, tail: bytes) -> str | None:
    """The precision of a file; None if it has no seal of ours that fits.

    Args:
        body_sha256: of all but the last `SEAL_BYTES` of the file, hexadecimal.
        tail: these.
    """
    return next((name for name in ENGINE_PRECISIONS if tail == _seal(name, body_sha256)), None)


def _seal(precision: str, sha256: str) -> bytes:
    entry = _field(_KEY, SEAL_KEY.encode()) + _field(_VALUE, f"{precision} {sha256}".encode())
    return _field(_PROPERTY, entry)


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + bytes([len(content)]) + content  # lengths below 128 are one byte


SEAL_BYTES = len(_seal("fp32", hashlib.sha256().hexdigest()))
"""The names of all precisions that are exported are equally long."""
