"""JSON that somebody edited: every file of that kind that a command reads, with a value, a key or a byte changed."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from hypothesis import strategies as st

from diffusion.process import METADATA_KEY
from runtime.formats.digest import DIGEST, seal

SAMPLE = ("runtime.sample", "--num", "2", "--steps", "2", "--format", "npy")
# What is read, and the command that reads it. "unet.onnx" means the process in its metadata.
READERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("unet.onnx", (*SAMPLE, "--backend", "onnxruntime")),
    ("unet.onnx", SAMPLE),
    ("unet.onnx", ("export.to_openvino", "--onnx", "unet.onnx", "--out", "out.xml")),
    ("unet.onnx", ("benchmarks.likelihood", "--data", "images.npz", "--num", "2", "--evaluations", "20")),
    ("heartbeat.onnx", ("runtime.sample_bits", "--num", "2")),
    ("swiss_roll.onnx", ("benchmarks.swiss_roll", "--num", "2", "--steps", "2")),
    ("unet.xml.json", (*SAMPLE, "--engine", "unet.xml")),
    ("table.json", ("runtime.sample", "--num", "2", "--sampler", "table.json", "--format", "npy")),
    ("samples/run.json", (*SAMPLE, "--resume", "--backend", "onnxruntime")),
    ("betas.json", ("train.run", "--data", "images.npz", "--steps", "1", "--batch-size", "2", "--num-samples", "0",
                    "--betas", "betas.json", "--device", "cpu", "--variance", "nonsense")),
    ("roll/mlp.json", ("export.mlp_to_onnx", "--checkpoint", "roll", "--out", "out.onnx")),
    ("ckpt/scheduler/scheduler_config.json", (*SAMPLE, "--engine", "ckpt")),
    ("ckpt/scheduler/scheduler_config.json", (*SAMPLE, "--engine", "ckpt")),
    ("ckpt/unet/config.json", (*SAMPLE, "--engine", "ckpt")),
    ("ckpt/unet/config.json", (*SAMPLE, "--engine", "ckpt")),
    ("ckpt/model_index.json", (*SAMPLE, "--engine", "ckpt")),
)  # fmt: skip

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 1.5, 0.0, -0.0, 1e308, 5e-324, 10**18, 10**30, 10**400, float("nan"), float("inf"),
    float("-inf"), "", "x", "1000", "epsilon", "0.5", "None", "é\n", "\ud800", [], [1], [0.1, "x"], [None], [[1]], {},
    {"a": 1}, {"kind": "linear"}, [0.1] * 12, "linear", "x" * 1000,
)  # fmt: skip


@dataclass(frozen=True)
class Edit:
    """One change.

    Attributes:
        file, argv: what is changed, and who reads it.
        place: keys and indices from the root; None for a change of the text.
        action: what is done there: "set", "remove", "add", or a change of the text.
        value: for "set" and "add".
    """

    file: str
    argv: tuple[str, ...]
    place: tuple[str | int, ...] | None
    action: str
    value: Any = None

    def apply(self, folder: Path) -> None:
        """Change the file."""
        path = folder / self.file
        text = _read(path)
        if self.place is None:
            _write(path, _TEXT[self.action](text))
            return
        root = {"": copy.deepcopy(json.loads(text))}
        *way, last = ("", *self.place)
        node: Any = root
        for key in way:
            node = node[key]
        if self.action == "remove":
            del node[last]
        elif self.action == "add":
            node[last]["surplus"] = self.value
        else:
            node[last] = self.value
        changed = root.get("")
        if isinstance(changed, dict) and DIGEST in changed and last != DIGEST:
            with contextlib.suppress(ValueError):  # NaN has no digest
                changed = seal(changed)  # else nothing but the digest would be looked at
        _write(path, json.dumps(changed).encode("utf-8", "surrogatepass"))


_TEXT = {
    "empty": lambda text: b"",
    "cut": lambda text: text.encode()[: len(text) // 2],
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "latin-1": lambda text: text.encode() + b"\xe9",
    "zeros": lambda text: b"\0" * len(text),
    "deep": lambda text: b"[" * 100_000 + b"]" * 100_000,
    "deep object": lambda text: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "digits": lambda text: text.replace("12", "9" * 5000, 1).encode(),
    "twice": lambda text: (text + text).encode(),
    "comma": lambda text: text.replace(",", ",,", 1).encode(),
    "repeated key": lambda text: text.replace("{", '{"format": 2, ', 1).encode(),
    "null": lambda text: b"null",
    "list": lambda text: b"[]",
    "string": lambda text: b'"x"',
    "number": lambda text: b"1e999",
}


def _read(path: Path) -> str:
    if path.suffix != ".onnx":
        return path.read_text(encoding="utf-8")
    return next(entry.value for entry in onnx.load(str(path)).metadata_props if entry.key == METADATA_KEY)


def _write(path: Path, content: bytes) -> None:
    if path.suffix != ".onnx":
        path.write_bytes(content)
        return
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {METADATA_KEY: content.decode("utf-8", "replace").replace("\ud800", "?")})
    path.write_bytes(model.SerializeToString())


def places(value: Any, way: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The root and everything below it; of long lists the ends alone."""
    yield way
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*way, key))
    elif isinstance(value, list):
        for index in sorted({0, len(value) - 1} if value else ()):
            yield from places(value[index], (*way, index))


@st.composite
def edits(draw: Any, folder: Path) -> Edit:
    """A change of one of the files in `folder`, a `tests.fuzz.work_folder` with `samples` of a run in it."""
    file, argv = draw(st.sampled_from(READERS))
    if draw(st.integers(0, 7)) == 7:
        return Edit(file, argv, None, draw(st.sampled_from(sorted(_TEXT))))
    tree = json.loads(_read(folder / file))
    place = draw(st.sampled_from(list(places(tree))))
    node = tree
    for key in place:
        node = node[key]
    actions = ["set", "set", "set", *(["remove"] if place else []), *(["add"] if isinstance(node, dict) else [])]
    action = draw(st.sampled_from(actions))
    return Edit(file, argv, place, action, None if action == "remove" else draw(st.sampled_from(VALUES)))
