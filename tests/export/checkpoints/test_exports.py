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
from tests.export.checkpoints.openai_networks import improved_network, save

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
