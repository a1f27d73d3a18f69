"""Every byte that an ONNX network is made of, hashed: the file, and the files beside it that hold its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from diffusion.errors import InputError
from runtime.engines.protobuf_wire import WireFile, span

# Which messages of onnx.proto are inside which: by kind, tag and the kind within. All that can hold a tensor is here.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {span(7): "graph", span(20): "training", span(25): "function"},
    "training": {span(1): "graph", span(2): "graph"},
    "graph": {span(1): "node", span(5): "tensor", span(15): "sparse"},
    "function": {span(7): "node", span(11): "attribute"},
    "node": {span(5): "attribute"},
    "attribute": {
        **dict.fromkeys((span(5), span(10)), "tensor"),
        **dict.fromkeys((span(6), span(11)), "graph"),
        **dict.fromkeys((span(22), span(23)), "sparse"),
    },
    "sparse": {span(1): "tensor", span(2): "tensor"},
    "tensor": {span(13): "entry"},
    "entry": {},
}
_ENTRY_KEY, _ENTRY_VALUE = span(1), span(2)
_LOCATION = b"location"
_LONGEST_LOCATION = 4096
# Protocol Buffers' own readers stop there.
_DEEPEST = 100


def network_sha256(path: Path) -> str:
    """What tells one network from another, whatever its weights are stored in.

    Of a file that holds everything, it is the SHA-256 of the file. Where weights lie in other files, their names and
    whole contents are hashed with it: two networks may have the same `.onnx` and other weights.

    Args:
        path: an ONNX file.

    Raises:
        InputError: it cannot be read, or it is too large or too strange to say which files belong to it.
    """
    try:
        own = _hash(path)
        locations = external_locations(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{path}: cannot be searched for the files that hold its weights ({error}), so the network would have no "
            "name of its own; save it again with the weights in the file"
        ) from error
    if not locations:
        return own
    digest = hashlib.sha256(own.encode())
    for location in sorted(locations):
        digest.update(b"\0" + location + b"\0")
        found = _find(path, location)
        digest.update(b"none" if found is None else _hash(found).encode())
    return digest.hexdigest()


def external_locations(path: Path) -> set[bytes]:
    """The names of the files that hold tensors of an ONNX file, relative to its folder.

    Tensors of the graph, sparse or not, of nodes' attributes, of subgraphs and of functions.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file.
    """
    with path.open("rb", buffering=0) as file:
        wire = WireFile(file)
        found: set[bytes] = set()
        left = [("model", 0, wire.size, 0)]
        while left:
            kind, start, end, depth = left.pop()
            if depth > _DEEPEST:
                raise ValueError(f"more than {_DEEPEST} messages in each other")
            if kind == "entry":
                found |= _location(wire, start, end)
                continue
            inside = _INSIDE[kind]
            left += [
                (inside[tag], first, last, depth + 1) for tag, first, last in wire.fields(start, end) if tag in inside
            ]
    return found


def _location(wire: WireFile, start: int, end: int) -> set[bytes]:
    key, value = b"", b""
    for tag, first, last in wire.fields(start, end):
        if tag == _ENTRY_KEY:
            key = wire.content(first, last) if last - first == len(_LOCATION) else b""
        elif tag == _ENTRY_VALUE:
            value = wire.content(first, min(last, first + _LONGEST_LOCATION))
    return {value} if key == _LOCATION else set()


def _find(path: Path, location: bytes) -> Path | None:
    """The file at a location; beside a link to the ONNX file, or else beside the file itself."""
    try:
        name = location.decode()
        for folder in (path.parent, path.resolve().parent):
            if (folder / name).is_file():
                return folder / name
    except (OSError, ValueError):
        return None
    return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
