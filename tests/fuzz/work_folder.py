"""A folder with a little of everything that a command may be given, whole and broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from diffusion.samplers import make_table
from diffusion.samplers.user_table import table_to_json
from tests.checkpoints import save_tiny_checkpoint
from tests.gaussian import GaussianNetwork

TIMESTEPS = 12
PROCESS = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", TIMESTEPS, 0.01, 0.5))
COLOR = Process(SampleShape(3, 4, 4), NoiseSchedule.make("linear", TIMESTEPS, 0.01, 0.5))
_BROKEN = ("onnx", "xml", "json", "npz", "npy", "png", "plan")


def make_work_folder(folder: Path) -> Path:
    """Fill an empty folder; made once, then copied with `copy_folder`."""
    from export import ExportRequest, export_openvino
    from export.mlp_to_onnx import export_mlp
    from train.binary import main as train_binary
    from train.swiss_roll import main as train_swiss_roll

    GaussianNetwork(PROCESS, 0.2, 0.5).save_onnx(folder / "unet.onnx")
    GaussianNetwork(COLOR, 0.2, 0.5).save_onnx(folder / "color.onnx")
    export_openvino(ExportRequest(folder / "unet.xml", onnx=folder / "unet.onnx"))
    save_tiny_checkpoint(folder / "ckpt", size=4, num_train_timesteps=TIMESTEPS)
    assert train_swiss_roll(["--steps", "1", "--out", str(folder / "roll")]) == 0
    words = ["--steps", "1", "--timesteps", "3", "--num-samples", "1", "--out", str(folder / "bits")]
    assert train_binary(words) == 0
    export_mlp(folder / "roll", folder / "swiss_roll.onnx")
    export_mlp(folder / "bits", folder / "heartbeat.onnx")

    pixels = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), dtype=np.uint8)
    np.savez(folder / "images.npz", pixels)
    np.savez(folder / "floats.npz", pixels / 255)
    np.save(folder / "images.npy", pixels)
    np.save(folder / "states.npy", np.random.default_rng(0).standard_normal((3, 1, 4, 4)).astype(np.float32))
    (folder / "table.json").write_text(json.dumps(table_to_json(make_table(PROCESS, "ddim", 3))))
    (folder / "betas.json").write_text(json.dumps(PROCESS.schedule.betas.tolist()))
    Image.fromarray(pixels[0, :, :, 0]).save(folder / "picture.png")
    (folder / "pictures").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image[:, :, 0]).save(folder / "pictures" / f"{number}.png")

    (folder / "empty").touch()
    (folder / "empty_folder").mkdir()
    junk = bytes(np.random.default_rng(1).integers(0, 256, 4096, dtype=np.uint8))
    for suffix in _BROKEN:
        (folder / f"empty.{suffix}").touch()
        (folder / f"junk.{suffix}").write_bytes(junk)
        (folder / f"folder.{suffix}").mkdir()
    (folder / "dangling.onnx").symlink_to("nowhere")
    (folder / "loop.onnx").symlink_to("loop.onnx")
    return folder


def copy_folder(source: Path, target: Path) -> Path:
    """A copy to work in, links kept."""
    shutil.copytree(source, target, symlinks=True)
    return target
