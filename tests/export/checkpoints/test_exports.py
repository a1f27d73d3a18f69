"""A checkpoint of another project through every exporter, from the command line to engines that were verified."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from export import to_onnx, to_openvino, to_trt
from runtime.engines.onnx_runtime import OnnxRuntimeEngine
from runtime.engines.verification import predict_with
from tests.export.checkpoints.openai_networks import SR_FLAGS, improved_network, save, super_resolution_network

FLAGS = [
    "--allow-pickle",
    "--image_size",
    "16",
    "--num_heads",
    "4",
    "--use_new_attention_order",
    "False",
    "--noise_schedule",
    "cosine",
    "--diffusion_steps",
    "40",
    "--rescale_timesteps",
    "True",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = improved_network(attention_resolutions=(1, 2))  # heads of two widths
    return save(network, tmp_path_factory.mktemp("improved") / "ema_0.9999_000100.pt")


@pytest.fixture(scope="module")
def upsampler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = super_resolution_network(num_classes=7)
    return save(network, tmp_path_factory.mktemp("guided") / "upsampler.pt")


def test_onnx_with_conditions(upsampler: Path, tmp_path: Path) -> None:
    out = tmp_path / "unet.onnx"
    flags = ["--allow-pickle", *(f"--{name}={value}" for name, value in SR_FLAGS.items())]
    assert to_onnx.main(["--checkpoint", str(upsampler), "--out", str(out), *flags]) == 0
    engine, generator = OnnxRuntimeEngine(out), np.random.default_rng(0)
    assert [condition.name for condition in engine.process.conditions] == ["y", "low_res"]
    x, low_res = (generator.standard_normal((5, 3, side, side), np.float32) for side in (16, 4))
    t, y = np.array([0, 1, 7, 200, 999], np.float32), np.array([0, 6, 3, 3, 1])
    named = {"y": torch.from_numpy(y), "low_res": torch.from_numpy(low_res)}
    with torch.no_grad():
        expected = super_resolution_network(num_classes=7)(torch.from_numpy(x), torch.from_numpy(t), **named).numpy()
    assert np.linalg.norm(predict_with(engine)(x, t, y, low_res) - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("exporter", "name", "flags"),
    [(to_openvino, "unet.xml", []), (to_trt, "unet.plan", ["--flavor", "rtx"])],
    ids=["openvino", "tensorrt"],
)
def test_engines_with_conditions(
    exporter, name: str, flags: list[str], upsampler: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--allow-pickle", *(f"--{flag}={value}" for flag, value in SR_FLAGS.items())]
    assert exporter.main(["--checkpoint", str(upsampler), "--out", str(tmp_path / name), "--json", *flags, *more]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [condition["name"] for condition in report["process"]["conditions"]] == ["y", "low_res"]
    assert report["verification"]["passed"]


def test_onnx(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "unet.onnx"
    assert to_onnx.main(["--checkpoint", str(checkpoint), "--out", str(out), *FLAGS]) == 0
    engine = OnnxRuntimeEngine(out)
    assert (engine.process.schedule.kind, engine.process.timestep_spacing) == ("squaredcos_cap_v2", "linspace")
    x, t = np.random.default_rng(0).standard_normal((5, 3, 16, 16), np.float32), np.array([0, 1, 7, 20, 39], np.float32)
    with torch.no_grad():
        expected = improved_network(attention_resolutions=(1, 2))(torch.from_numpy(x), torch.from_numpy(t) * 25).numpy()
    assert np.linalg.norm(predict_with(engine)(x, t) - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("exporter", "name", "flags"),
    [(to_openvino, "unet.xml", []), (to_trt, "unet.plan", ["--flavor", "rtx", "--fp16"])],
    ids=["openvino", "tensorrt"],
)
def test_engines(
    exporter, name: str, flags: list[str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / name), "--json", *flags, *FLAGS]
    assert exporter.main(command) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["process"]["schedule"] == {"kind": "squaredcos_cap_v2", "num_train_timesteps": 40}
    assert report["verification"]["passed"]
    assert f"{checkpoint}: predicts epsilon (default of --predict_xstart), noise squaredcos_cap_v2" in printed.err
