"""An ONNX file as it is before a backend opens it: its identity, its precision, and what its graph does first.

Our own files are sealed (`runtime.formats.onnx_seal`) and need nothing but their bytes. Those of others are read with
`onnx`, which is imported only then, and without their weights if these lie in other files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.errors import DeviceUnavailableError, reason
from commands.system import check_memory
from diffusion.errors import InputError
from diffusion.regular_files import file_facts, open_regular, unreadable
from runtime.engines.onnx_limits import check_limits
from runtime.engines.onnx_precision import model_precision
from runtime.formats.onnx_seal import SEAL_BYTES, sealed_precision

if TYPE_CHECKING:
    import onnx

Facts = dict[Path, tuple[int, ...]]
"""By file: which it is, its size and its times, which change with it."""

MAX_BYTES = 2**31 - 1
"""Protocol Buffers hold no more."""

_MAKE_ONE = "make one with `python -m export.to_onnx`"

# A node of this kind, as the field `op_type` of NodeProto. Our exporters write none: a file that holds one is foreign.
_LOOP = b"\x22\x04Loop"

TO_CHANNELS_FIRST = (0, 3, 1, 2)


@dataclass(frozen=True)
class OnnxFile:
    """What was read of an ONNX file.

    Attributes:
        path: of the file.
        sha256: of the file; where weights lie in other files, of their names and whole contents too, because two
            networks may have the same `.onnx` and other weights.
        precision: see `runtime.engines.onnx_precision`.
        is_whole: whether all weights are in the file.
        channels_last: the values, inputs among them, that the graph brings from [N, H, W, C] into [N, C, H, W].
        has_digest: whether it is sealed: nothing vouches for the bytes of any other.
        facts: of the file and those of its weights, as they were before they were read.
    """

    path: Path
    sha256: str
    precision: str
    is_whole: bool = True
    channels_last: frozenset[str] = frozenset()
    has_digest: bool = False
    facts: Facts = field(default_factory=dict, compare=False)

    def check_unchanged(self) -> None:
        """To be called once a backend has opened the file, which it does by its name.

        Raises:
            InputError: it was written again since it was read: the hash may be of another network.
        """
        try:
            changed = [path for path, facts in self.facts.items() if file_facts(path.stat()) != facts]
        except OSError:  # removed since
            changed = [self.path]
        if changed:
            raise InputError(f"{changed[0]}: was written again while it was opened; wait for its writer and try again")


def read_onnx(path: Path, make_one: str = _MAKE_ONE) -> OnnxFile:
    """Read a file once.

    Args:
        path: of the file.
        make_one: how the user gets one: the end of an error.

    Raises:
        InputError: no file, or not one of ONNX; one of ours that was changed; weights in files that cannot be read; or
            a precision of ours that this version does not know.
        DeviceUnavailableError: it is not one of ours, and `onnx` is not installed.
    """
    with open_regular(path, make_one) as file:
        status = os.fstat(file.fileno())
        facts, size = {path: file_facts(status)}, status.st_size
        if size > MAX_BYTES:
            raise InputError(
                f"{path}: found {size} bytes, expected at most {MAX_BYTES}, as one ONNX file can hold; save it "
                "with its weights in a file beside it"
            )
        check_memory(f"{path}: the file", size, "run it on a machine with more")
        try:
            content = file.read(size)
        except OSError as error:
            raise unreadable(path, error, make_one) from error
    body, tail = memoryview(content)[:-SEAL_BYTES], content[-SEAL_BYTES:]
    digest = hashlib.sha256(body)
    try:
        precision = sealed_precision(len(body), digest.hexdigest(), tail)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    digest.update(tail)
    if precision is not None and _LOOP not in content:
        return OnnxFile(path, digest.hexdigest(), precision, has_digest=True, facts=facts)
    found = _read_foreign(path, content, digest.hexdigest())
    return replace(found, facts=facts | found.facts)


def _read_foreign(path: Path, content: bytes, sha256: str) -> OnnxFile:
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise DeviceUnavailableError(
            f"{path}: was not written by `python -m export.to_onnx`, or was changed since: reading it needs onnx, and "
            f'the module {error.name!r} is not installed; pip install "ddpm-rt[onnx]"'
        ) from error
    try:
        model = onnx.ModelProto.FromString(content)
        check_limits(path, model)
        _ = [(entry.key, entry.value) for entry in model.metadata_props]  # which are decoded only now
        locations = sorted(location.encode() for location in set(_external_locations(model)))
        precision = model_precision(path, model)
        channels_last = _channels_last(model.graph)
    except InputError:
        raise
    except Exception as error:  # Protocol Buffers' own, or a ValueError for text that is not UTF-8
        raise InputError(
            f"{path}: cannot be read as an ONNX model ({reason(error)}); make one with `python -m export.to_onnx`"
        ) from error
    facts: Facts = {}
    if locations:
        sha256 = _hash_with(path, sha256, locations, facts)
    return OnnxFile(path, sha256, precision, not locations, channels_last, facts=facts)


def _external_locations(message: Any) -> Iterator[str]:
    """The names of the files that hold tensors, wherever in a model these are.

    Raises:
        ValueError: a text that is not UTF-8, which backends and their Python bindings do not expect.
    """
    for kind, value in message.ListFields():
        if kind.type == kind.TYPE_STRING and _undecoded(value):
            raise ValueError(f"a {kind.name} in it is not UTF-8")
        if kind.message_type is None:
            continue
        for each in [value] if hasattr(value, "ListFields") else value:
            if kind.message_type.name == "TensorProto":
                yield from (entry.value for entry in each.external_data if entry.key == "location")
            else:
                yield from _external_locations(each)


def _undecoded(value: Any) -> bool:
    """Whether a field of type string holds what Protocol Buffers leave as bytes."""
    return isinstance(value, bytes) or (not isinstance(value, str) and any(isinstance(each, bytes) for each in value))


def _hash_with(path: Path, sha256: str, locations: list[bytes], facts: Facts) -> str:
    """Of the file and those of its weights, whose facts are added to `facts`."""
    digest = hashlib.sha256(sha256.encode())
    try:
        for location in locations:
            found = _find(path, location.decode())
            digest.update(b"\0" + location + b"\0")
            if found is None:
                digest.update(b"none")  # which the backend reports
            else:
                with open_regular(found, "name another as its weights") as file:
                    facts[found] = file_facts(os.fstat(file.fileno()))
                    digest.update(hashlib.file_digest(file, "sha256").hexdigest().encode())
    except OSError as error:
        raise InputError(f"{path}: {error.filename}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def _find(path: Path, location: str) -> Path | None:
    """The file at a location; beside a link to the ONNX file, or else beside the file itself."""
    try:
        candidates = (path.parent / location, path.resolve().parent / location)
        return next((file for file in candidates if file.is_file()), None)
    except (OSError, ValueError):  # no name of a file
        return None


def _channels_last(graph: onnx.GraphProto) -> frozenset[str]:
    """The inputs that are transposed, themselves or a copy or a cast of them."""
    origin = {entry.name: entry.name for entry in graph.input}
    found = set()
    for node in graph.node:  # in the order in which they are computed
        source = origin.get(node.input[0]) if node.input else None
        if source is None:
            continue
        if node.op_type == "Transpose":
            found |= {
                source for each in node.attribute if each.name == "perm" and tuple(each.ints) == TO_CHANNELS_FIRST
            }
        elif node.op_type in ("Identity", "Cast"):
            origin |= dict.fromkeys(node.output, source)
    return frozenset(found)
