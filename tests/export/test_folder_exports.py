"""Folders of many kinds through an exporter: the graph predicts what diffusers' own network predicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel

from benchmarks.networks import random_network
from export import ExportRequest, export_onnx
from export.to_onnx import main
from runtime.engines.opening import open_engine
from runtime.engines.torch_checkpoint import load_checkpoint
from tests.runtime.engines.folder_matrix import TOLD, UNET, Case, make_folder, save_weights

CASES = [
    Case("flat", "variant", "UniPCMultistepScheduler", "none", "karras", "what differs"),
    Case("parts", "shards", "DDPMScheduler", "laplace", "fixed_small_log", "no class"),
    Case("network in root", "pickle shards", "DPMSolverMultistepScheduler", "trained", "zero snr", "all"),
    Case("scheduler in root", "old names", "HeunDiscreteScheduler", "exp", "sample", "what differs"),
    Case("flat", "bfloat16", "DDPMScheduler", "sigmoid", "learned_range", "all"),
]


def check_graph(path: Path, unet: UNet2DModel) -> None:
    """16 timesteps over the whole range, in batches of 1, 2, 5 and 8."""
    engine = open_engine(path, backend="onnxruntime")
    process = engine.process
    timesteps = np.linspace(0, process.schedule.num_train_timesteps - 1, 16).round().astype(np.float32)
    rng = np.random.default_rng(0)
    for t in np.split(timesteps, [1, 3, 8]):
        t = np.ascontiguousarray(t)
        x = rng.standard_normal((len(t), *process.sample.chw), dtype=np.float32)
        ours = np.empty((len(t), process.prediction_channels, *process.sample.chw[1:]), dtype=np.float32)
        engine.bind(x, t, ours)()
        with torch.no_grad():
            theirs = unet(torch.from_numpy(x), torch.from_numpy(t)).sample.numpy()
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)
        assert np.linalg.norm(theirs) > 0.1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_exported_folder_predicts_what_diffusers_predicts(case: Case, tmp_path: Path) -> None:
    channels = 2 if case.setting == "learned_range" else 1
    save_weights(
        tmp_path / f"{case.weights} {channels}", random_network(7, out_channels=channels, **UNET), case.weights
    )
    folder = make_folder(tmp_path / "checkpoint", case, tmp_path)
    told = TOLD.get(case.weights, {})
    if case.layout == "flat" and "variant" in told:
        pipeline = DDPMPipeline.from_pretrained(folder, unet=UNet2DModel.from_pretrained(folder, **told))
    else:
        pipeline = DDPMPipeline.from_pretrained(folder, **told)
    out = tmp_path / "unet.onnx"
    export_onnx(ExportRequest(out, folder, allow_pickle=True))
    assert open_engine(out).process == load_checkpoint(folder, allow_pickle=True).process
    check_graph(out, pipeline.unet)


FLAGS = "--beta-schedule laplace --num-train-timesteps 80 --prediction-type v_prediction --variance-type fixed_large"


def test_a_network_alone_is_exported_with_the_process_of_the_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = random_network(3, 80, out_channels=1, **UNET)
    network.save_pretrained(tmp_path / "alone")
    out = tmp_path / "unet.onnx"
    words = ["--checkpoint", str(tmp_path / "alone"), "--out", str(out), *FLAGS.split()]
    assert main(words) == 2
    assert "--clip-sample is not given; give them" in capsys.readouterr().err
    assert not out.exists()
    assert main([*words, "--clip-sample", "1.5"]) == 0
    process = open_engine(out).process
    assert (process.schedule.kind, process.schedule.num_train_timesteps) == ("laplace", 80)
    assert (process.prediction_type, process.variance_type, process.clip_sample) == ("v_prediction", "fixed_large", 1.5)
    check_graph(out, network)
