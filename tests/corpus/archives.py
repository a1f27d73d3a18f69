"""Arrays, archives and pickles that claim, unpack to, or would do what they must not."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.corpus.case import Case, Make, case
from tests.corpus.folder import HO_FLAGS, remove, set_golden

# The begin of an entry of an archive's directory, up to the method that it is packed by.
_STORED = b"PK\x01\x02\x14\x03\x14" + bytes(5)
_SAMPLE = "runtime.sample --num 3 --steps 2 --backend onnxruntime --out new"
_TRAIN = "train.run --steps 1 --batch-size 2 --num-samples 0 --num-train-timesteps 12 --device cpu --out new"
CANARY = "canary"


class _Canary:
    """Unpickled by Python's own reader, it would make a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (CANARY,)


def header(shape: str, descr: str = "|u1", order: str = "False") -> bytes:
    """The header of a .npy file, with whatever shape is written."""
    text = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}"
    text += " " * (-(10 + len(text) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin-1")


def zeros_archive(names: tuple[str, ...], begin: bytes, num_zeros: int) -> bytes:
    """A zip archive of members that begin so and go on with zeros, packed a thousandfold.

    Made of one part of packed zeros again and again, so that it costs nothing to make.
    """
    part = 2**20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(begin) + packer.flush(zlib.Z_FULL_FLUSH)
    middle = packer.compress(bytes(part)) + packer.flush(zlib.Z_FULL_FLUSH)
    num = num_zeros // part
    body = first + middle * num + packer.flush(zlib.Z_FINISH)
    size = len(begin) + num * part
    content, central = b"", b""
    for name in names:
        encoded = name.encode()
        # The checksum is not that of the zeros: nobody may come so far as to compare it.
        facts = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(body), size, len(encoded), 0)
        central += b"PK\x01\x02\x14\x00" + facts + struct.pack("<HHHII", 0, 0, 0, 0, len(content)) + encoded
        content += b"PK\x03\x04" + facts + encoded + body
    end = struct.pack("<HHHHIIH", 0, 0, len(names), len(names), len(central), len(content), 0)
    return content + central + b"PK\x05\x06" + end


def _archive(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _encrypted(content: bytes) -> bytes:
    """The same archive, whose entries say that they are encrypted."""
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(signature)
        content = content[: at + place] + b"\x01" + content[at + place + 1 :]
    return content


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def _write(name: str, content: bytes) -> Make:
    def make(folder: Path) -> None:
        remove(folder / name)
        (folder / name).write_bytes(content)

    return make


def _sparse(name: str, begin: bytes, size: int) -> Make:
    def make(folder: Path) -> None:
        remove(folder / name)
        with (folder / name).open("wb") as file:
            file.write(begin)
            file.truncate(size)

    return make


def _image_arrays() -> dict[str, bytes]:
    """Contents of `arr_0.npy` that are no images [8, 4, 4, 1]."""
    return {
        "2 GiB claimed": header(f"({2**27}, 4, 4, 1)") + bytes(64),
        "2^80 claimed": header(f"({2**78}, 4, 4, 1)") + bytes(64),
        "negative": header("(-8, 4, 4, 1)") + bytes(128),
        "objects": _npy(np.array([_Canary()], dtype=object)),
        "floats": _npy(np.zeros((8, 4, 4, 1))),
        "dates": _npy(np.zeros((8, 4, 4, 1), "datetime64[s]")),
        "records": _npy(np.zeros((8, 4, 4), [("r", "u1")])),
        "no header": b"\x93NUMPY\x09\x09junk",
        "code": header("(__import__('os').mkdir('canary'),)") + bytes(8),
        "deep": header("(" * 3000 + "1" + ",)" * 3000) + bytes(8),
        "digits": header(f"({'9' * 6000},)") + bytes(8),
        "true": header("(True, 4, 4, 1)") + bytes(8),
        "empty": header("(0, 4, 4, 1)"),
        "no axes": header("()") + b"\0",
        "30 axes": header(f"({'1, ' * 30})") + b"\0",
        "100 axes": header(f"({'1, ' * 100})") + b"\0",
    }


_TENSORS = b"\x80\x02}q\x00."  # an empty table


def _safetensors(text: bytes, tail: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + tail


def _safetensors_contents() -> dict[str, bytes]:
    one = b'{"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}'
    return {
        "deep": _safetensors(b"[" * 50_000 + b"]" * 50_000),
        "deep objects": _safetensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
        "digits": _safetensors(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 16]}}'),
        "not UTF-8": _safetensors(b'{"\xff": 1}'),
        "offset true": _safetensors(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, true]}}'),
        "offset text": _safetensors(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": ["0", "16"]}}'),
        "offset huge": _safetensors(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 1e400]}}'),
        "a terabyte": _safetensors(
            b'{"a": {"dtype": "F32", "shape": [250000000000], "data_offsets": [0, 1000000000000]}}'
        ),
        "header of 2^63": _safetensors(one, bytes(16), 2**63),
        "header of 90 MB": _safetensors(one, bytes(16), 9 * 10**7),
        "cut": _safetensors(one, bytes(8)),
        "overlap": _safetensors(
            b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, '
            b'"b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}', bytes(16)
        ),
        "another type": _safetensors(b'{"a": {"dtype": "X9", "shape": [4], "data_offsets": [0, 16]}}', bytes(16)),
        "a tensor alone": _safetensors(one, bytes(16)),
        "nothing": _safetensors(b"{}"),
        "a million lists": _safetensors(b'{"a":[' + b"[]," * 1_000_000 + b"[]]}"),
    }  # fmt: skip


def _pickles() -> dict[str, bytes]:
    table = {3: 1, "a": 2}
    return {
        "canary": pickle.dumps(_Canary(), 2),
        "canary in a zip": _archive({"archive/data.pkl": pickle.dumps(_Canary(), 2), "archive/version": b"3\n"}),
        "integer keys": pickle.dumps(table, 2),
        "integer keys in a zip": _archive({"archive/data.pkl": pickle.dumps(table, 2), "archive/version": b"3\n"}),
        "a huge integer key": pickle.dumps({10**9000: 1}, 2),
        "a list": pickle.dumps([1, 2], 2),
        "deep lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "a million lists": b"\x80\x02" + b"]" * 5_000_000 + b".",
        "deep in a zip": _archive({"archive/data.pkl": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."}),
        "lists in a zip": _archive({"archive/data.pkl": b"\x80\x02" + b"]" * 2**23 + b"."}),
        "a bytearray of 8 GiB": b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R.",
        "cut": pickle.dumps({"a": "b" * 9999}, 2)[:5000],
        "not UTF-8": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
        "an empty zip": _archive({}),
        "a zip of text": _archive({"a.txt": b"x"}),
        "a packed zip": _archive({"archive/data.pkl": _TENSORS, "archive/version": b"3\n"}, zipfile.ZIP_DEFLATED),
        "2 GiB of zeros": zeros_archive(("archive/data.pkl", "archive/data/0"), _TENSORS, 2**31),
        "an encrypted zip": _encrypted(_archive({"archive/data.pkl": _TENSORS})),
        "a memo that is not there": b"\x80\x02h\x09.",
        "a persistent id": b"\x80\x02}q\x00X\x01\x00\x00\x00aX\x01\x00\x00\x00bQs.",
    }


def cases() -> Iterator[Case]:
    """Every content for every reader of its kind."""
    for kind, content in _image_arrays().items():
        archive = _archive({"arr_0.npy": content})
        yield case(
            f"npz {kind}: train.run", f"{_TRAIN} --data images.npz", ["images.npz"], _write("images.npz", archive)
        )
        yield case(
            f"npy {kind}: train.run", f"{_TRAIN} --data images.npy", ["images.npy"], _write("images.npy", content)
        )
        if kind != "floats":
            yield case(
                f"npz {kind}: x-init", f"{_SAMPLE} --x-init states.npz", ["states.npz"], _write("states.npz", archive)
            )
            yield case(
                f"npy {kind}: x-init", f"{_SAMPLE} --x-init states.npy", ["states.npy"], _write("states.npy", content)
            )
        line = f"{_SAMPLE} --engine low_res.onnx --condition low_res=small.npy"
        if kind not in ("floats", "empty", "2 GiB claimed"):
            yield case(f"npy {kind}: condition", line, ["small.npy|low_res"], _write("small.npy", content))
    good = header("(8, 4, 4, 1)") + bytes(128)
    for kind, content in {
        "encrypted": _encrypted(_archive({"arr_0.npy": good})),
        "LZMA": _archive({"arr_0.npy": good}, zipfile.ZIP_LZMA),
        "BZIP2": _archive({"arr_0.npy": good}, zipfile.ZIP_BZIP2),
        "method 99": _archive({"arr_0.npy": good}).replace(_STORED, _STORED[:-2] + b"\x63\x00"),
        "2 GiB of zeros": zeros_archive(("arr_0.npy",), header(f"({2**27}, 4, 4, 1)"), 2**31),
        "zeros beyond the header": zeros_archive(("arr_0.npy",), header("(8, 4, 4, 1)"), 2**31),
        "no arrays": _archive({}),
        "two arrays": _archive({"a.npy": good, "b.npy": good}),
        "a text": _archive({"arr_0.npy": b"hello"}),
        "cut": _archive({"arr_0.npy": good})[:100],
        "without its end": _archive({"arr_0.npy": good}, zipfile.ZIP_DEFLATED)[:-30],
        "70000 arrays": _many_entries(70_000),
    }.items():  # fmt: skip
        yield case(
            f"npz {kind}: train.run", f"{_TRAIN} --data images.npz", ["images.npz"], _write("images.npz", content)
        )
        yield case(
            f"npz {kind}: x-init", f"{_SAMPLE} --x-init states.npz", ["states.npz"], _write("states.npz", content)
        )
        line, name = "runtime.gather shards --out new.npz", "shards/shard-000000000-000000001.npz"
        yield case(f"npz {kind}: gather", line, ["shard"], _write(name, content))
        line = "runtime.sample --num 3 --steps 2 --out new --engine unet.xml"
        yield case(f"npz {kind}: golden", line, ["unet.xml.golden.npz"], set_golden("unet.xml", content))
    for kind, arrays in _goldens().items():
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        line = "runtime.sample --num 3 --steps 2 --out new --engine unet.xml"
        yield case(f"golden {kind}", line, ["unet.xml"], set_golden("unet.xml", stream.getvalue()), 2, 3)
    for kind, content in _safetensors_contents().items():
        name = "ckpt/unet/diffusion_pytorch_model.safetensors"
        yield case(f"safetensors {kind}: sample", f"{_SAMPLE} --engine ckpt".replace("--backend onnxruntime ", ""),
                   ["model.safetensors"], _write(name, content))  # fmt: skip
        yield case(f"safetensors {kind}: inspect", "export.inspect model.safetensors", ["model.safetensors"],
                   _write("model.safetensors", content))  # fmt: skip
    for kind, content in _pickles().items():
        line = f"export.convert model.ckpt --out new {HO_FLAGS}"
        yield case(f"pickle {kind}: convert", line, ["model.ckpt"], _write("model.ckpt", content))
        yield case(
            f"pickle {kind}: inspect",
            "export.inspect model.pt --allow-pickle",
            ["model.pt"],
            _write("model.pt", content),
        )
        yield case(f"pickle {kind}: state", f"{_TRAIN} --data images.npz --resume --out trained", ["state.pt"],
                   _write("trained/state/state.pt", content))  # fmt: skip
    yield case("npy sparse 40 GiB: train.run", f"{_TRAIN} --data images.npy", ["images.npy"],
               _sparse("images.npy", header(f"({40 * 2**26}, 4, 4, 1)"), 40 * 2**30 + 128))  # fmt: skip
    yield case("npy sparse 40 GiB: x-init", f"{_SAMPLE} --x-init states.npy", ["states.npy"],
               _sparse("states.npy", header(f"({40 * 2**26}, 1, 4, 1)"), 40 * 2**30 + 128))  # fmt: skip
    line = f"{_SAMPLE} --engine ckpt".replace("--backend onnxruntime ", "")
    yield case("safetensors sparse 40 GiB", line, ["model.safetensors"],
               _sparse("ckpt/unet/diffusion_pytorch_model.safetensors", _safetensors(b"{}"), 40 * 2**30))  # fmt: skip
    yield case("pickle sparse 40 GiB", f"export.convert model.ckpt --out new {HO_FLAGS}", ["model.ckpt"],
               _sparse("model.ckpt", b"PK\x03\x04", 40 * 2**30))  # fmt: skip


def _many_entries(num: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(num):
            archive.writestr(zipfile.ZipInfo(str(number)), b"")
    return stream.getvalue()


def _goldens() -> dict[str, dict[str, Any]]:
    """References whose arrays do not go together."""
    good: dict[str, Any] = {
        "format": 2, "timesteps": np.arange(3)[::-1], "x": np.zeros((3, 2, 1, 4, 4), np.float32),
        "prediction": np.zeros((3, 2, 16), np.float32), "stride": 1, "input_rounding": np.zeros(3), "seed": 0,
        "chain_timesteps": np.arange(3)[::-1], "x_0": np.zeros((2, 1, 4, 4), np.float32),
    }  # fmt: skip
    changes: dict[str, dict[str, Any]] = {
        "stride 0": {"stride": 0},
        "stride -1": {"stride": -1},
        "stride 1.5": {"stride": 1.5},
        "stride 2^62": {"stride": 2**62},
        "stride of texts": {"stride": "x"},
        "stride of two": {"stride": [1, 1]},
        "format 3": {"format": 3},
        "format text": {"format": "x"},
        "format list": {"format": [2]},
        "no timesteps": {"timesteps": np.zeros(0, np.int64)},
        "negative timesteps": {"timesteps": np.array([-1, 0, 1])},
        "late timesteps": {"timesteps": np.array([10**9, 1, 0])},
        "timesteps of floats": {"timesteps": np.zeros(3)},
        "x of another shape": {"x": np.zeros((3, 2, 1, 5, 5), np.float32)},
        "x empty": {"x": np.zeros((0, 2, 1, 4, 4), np.float32)},
        "x of texts": {"x": np.full((3, 2, 1, 4, 4), "x")},
        "x of two axes": {"x": np.zeros((3, 2), np.float32)},
        "x not finite": {"x": np.full((3, 2, 1, 4, 4), np.nan, np.float32)},
        "x of complex": {"x": np.zeros((3, 2, 1, 4, 4), np.complex64)},
        "prediction short": {"prediction": np.zeros((3, 2, 3), np.float32)},
        "prediction empty": {"prediction": np.zeros((3, 2, 0), np.float32)},
        "prediction NaN": {"prediction": np.full((3, 2, 16), np.nan, np.float32)},
        "seed -1": {"seed": -1},
        "seed text": {"seed": "a"},
        "chain ascending": {"chain_timesteps": np.arange(3)},
        "chain empty": {"chain_timesteps": np.zeros(0, np.int64)},
        "chain twice": {"chain_timesteps": np.array([1, 1, 0])},
        "chain too late": {"chain_timesteps": np.array([10**9, 1, 0])},
        "x_0 of another shape": {"x_0": np.zeros((2, 3, 4, 4), np.float32)},
        "x_0 empty": {"x_0": np.zeros((0, 1, 4, 4), np.float32)},
        "conditions too many": {
            "conditions.0": np.zeros((3, 2), np.float32),
            "chain_conditions.0": np.zeros(2, np.float32),
        },
        "conditions with a gap": {"conditions.1": np.zeros((3, 2), np.float32)},
    }
    lacking = {f"without {name}": {each: good[each] for each in good if each != name} for name in good}
    return {kind: good | change for kind, change in changes.items()} | lacking
