"""What the bad inputs are made from: a folder with one good input of every kind that a command takes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.conditions import Condition
from runtime.formats.digest import DIGEST, sealed_text
from runtime.formats.sidecar import golden_path, sidecar_path
from tests.export.checkpoints.ho_network import HoNetwork
from tests.fuzz.work_folder import PROCESS, make_work_folder
from tests.gaussian import GaussianNetwork
from tests.runtime.engines.plan_files import NETWORK as OF_PLAN
from tests.runtime.engines.plan_files import engine_fields, save_plan

LOW_RES = Condition("low_res", "float32", (1, 4, 4))
HO_FLAGS = (
    "--allow-pickle --image_size 16 --beta_schedule linear --beta_start 1e-4 --beta_end 0.02 "
    "--num_diffusion_timesteps 100 --var_type fixedlarge"
)
DRAW = "--num 3 --steps 2 --backend onnxruntime --threads 1"


def make_corpus_folder(folder: Path) -> Path:
    """Fill an empty folder: what `tests.fuzz` works with, and a plan, runs, a checkpoint of others, conditions."""
    from runtime.sample import main as sample
    from train.run import run as train

    make_work_folder(folder)
    save_plan(folder / "unet.plan", OF_PLAN, engine_fields(OF_PLAN, "tensorrt-rtx"))
    torch.save(HoNetwork().tensors, folder / "model.ckpt")
    torch.save(HoNetwork().tensors, folder / "model.pt")
    _save_conditional(folder / "low_res.onnx")
    np.savez(folder / "states.npz", np.load(folder / "states.npy"))
    np.save(folder / "small.npy", np.zeros((1, 1, 4, 4), np.float32))
    (folder / "token.txt").write_text("a token of 24 characters".replace(" ", "-"))
    engine = ["--engine", str(folder / "unet.onnx")]
    assert sample([*engine, *DRAW.split(), "--format", "npy", "--out", str(folder / "samples")]) == 0
    shards = ["--format", "npz", "--shard-size", "2", "--out", str(folder / "shards")]
    assert sample([*engine, *DRAW.split(), *shards]) == 0
    words = [
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--num-samples",
        "0",
        "--num-train-timesteps",
        "12",
        "--device",
        "cpu",
    ]
    os.chdir(folder)  # the run remembers the name of its data
    assert train(["--data", "images.npz", *words, "--out", "trained"]) == 0
    return folder


def _save_conditional(path: Path) -> None:
    """A network that takes a small image and does not look at it."""
    import onnx

    process = replace(PROCESS, conditions=(LOW_RES,))
    GaussianNetwork(PROCESS, 0.2, 0.5).save_onnx(path)
    model = onnx.load(str(path))
    model.graph.input.append(onnx.helper.make_tensor_value_info("low_res", onnx.TensorProto.FLOAT, ["N", 1, 4, 4]))
    model.graph.node[-1].output[0] = "of_x"
    model.graph.node.append(onnx.helper.make_node("Add", ["of_x", "low_res"], ["prediction"]))
    onnx.helper.set_model_props(model, {"ddpm-rt": json.dumps(process.to_json())})
    onnx.save(model, str(path))


def edit_json(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """A `make` that changes the object of a JSON file."""

    def make(folder: Path) -> None:
        path = folder / name
        fields = json.loads(path.read_text())
        change(fields)
        path.write_text(_sealed(fields))

    return make


def set_process_text(name: str, text: bytes) -> Callable[[Path], None]:
    """A `make` that gives an ONNX file other metadata."""
    import onnx

    def make(folder: Path) -> None:
        model = onnx.load(str(folder / name))
        del model.metadata_props[:]
        # As bytes, which no API takes: what Protocol Buffers call a string need not be UTF-8.
        entry = b"\x0a\x07ddpm-rt\x12" + _varint(len(text)) + text
        (folder / name).write_bytes(model.SerializeToString() + b"\x72" + _varint(len(entry)) + entry)

    return make


def set_golden(name: str, content: bytes) -> Callable[[Path], None]:
    """A `make` that replaces an engine's reference, hash and all, and has it read, as on another machine."""

    def make(folder: Path) -> None:
        engine = folder / name
        golden_path(engine).write_bytes(content)
        fields = json.loads(sidecar_path(engine).read_text())
        fields["golden_sha256"] = hashlib.sha256(content).hexdigest()
        fields["engine"]["verified_on"] = None
        sidecar_path(engine).write_text(_sealed(fields))

    return make


def _sealed(fields: dict[str, Any]) -> str:
    """The text, with another digest where it had one: what is wrong in it is not that somebody changed it."""
    return sealed_text(fields) if DIGEST in fields else json.dumps(fields)


def both(*makes: Callable[[Path], None]) -> Callable[[Path], None]:
    """One `make` after the other."""

    def make(folder: Path) -> None:
        for each in makes:
            each(folder)

    return make


def remove(path: Path) -> None:
    """A file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


if __name__ == "__main__":
    make_corpus_folder(Path(sys.argv[1]))
