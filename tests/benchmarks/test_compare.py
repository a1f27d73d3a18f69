"""Peers that mean the same draw the same images, each in a process of its own."""

import json
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from benchmarks.compare import __main__ as command
from benchmarks.compare.__main__ import compare, main, prepare
from benchmarks.compare.peers import PEERS
from commands.errors import VerificationError
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from export import ExportRequest, export_onnx
from runtime.engines.torch_checkpoint import load_checkpoint
from tests.checkpoints import LEAST, save_tiny_checkpoint
from tests.gaussian import GaussianNetwork

CONFIG = "scheduler/scheduler_config.json"


def test_our_chain_beside_a_plain_loop(tmp_path):
    process = Process(SampleShape(1, 8, 8), NoiseSchedule.make("linear"))
    GaussianNetwork(process, 0.0, 0.5).save_onnx(tmp_path / "unet.onnx")
    names = ["plain ONNX Runtime loop", "ours, ONNX Runtime"]
    plain, ours = compare(tmp_path, names, batch_size=2, num_steps=10, rounds=2, threads=1)
    assert (plain["peer"], ours["peer"]) == tuple(names)
    assert plain["speedup"] == 1.0
    assert plain["relative_error"] == 0.0
    assert ours["relative_error"] < 1e-6
    for entry in (plain, ours):
        assert entry["ms_per_step_min"] <= entry["ms_per_step"] <= entry["ms_per_step_max"]
        assert 0.01 < entry["peak_gib"] < 4
        assert 0.05 < entry["first_step_seconds"] < 120


def test_a_peer_that_dies_is_an_error_of_one_line(tmp_path):
    with pytest.raises(InputError, match="ours, ONNX Runtime: the peer ended with exit code 1"):
        compare(tmp_path, ["ours, ONNX Runtime"], batch_size=1, num_steps=2, rounds=1, threads=1)


def test_unknown_peers_are_refused(capsys):
    assert main(["--peers", "magic"]) == 2
    assert f"expected one of {', '.join(PEERS)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scheduler", "more"),
    [
        ({}, ["ours, PyTorch"]),
        ({"timestep_spacing": "linspace", "variance_type": "learned_range"}, []),
        ({"timestep_spacing": "trailing", "variance_type": "fixed_small", "_class_name": "DDIMScheduler"}, []),
    ],
    ids=["leading", "linspace", "DDIM trailing"],
)
def test_every_peer_runs_on_one_grid_whatever_the_checkpoint_says(tmp_path, scheduler, more):
    """And draws the same images as diffusers from our noise."""
    scheduler = dict(scheduler)
    kind = scheduler.pop("_class_name", None)
    folder = save_tiny_checkpoint(tmp_path / "given", unet=LEAST, **scheduler)
    if kind is not None:
        for path, field in ((folder / "model_index.json", "scheduler"), (folder / CONFIG, "_class_name")):
            fields = json.loads(path.read_text())
            fields[field] = ["diffusers", kind] if field == "scheduler" else kind
            path.write_text(json.dumps(fields))
    folder.rename(tmp_path / "checkpoint")
    export_onnx(ExportRequest(tmp_path / "unet.onnx", tmp_path / "checkpoint"))
    names = ["diffusers", "plain ONNX Runtime loop", "ours, ONNX Runtime", *more]
    diffusers, *others = compare(tmp_path, names, batch_size=2, num_steps=7, rounds=1, threads=1)
    assert diffusers["peer"] == "diffusers"
    for entry in others:
        assert 0.0 < entry["relative_error"] < 1e-4, entry["peer"]


def test_peers_on_two_grids_are_an_error(tmp_path, monkeypatch):
    class Impostor:
        def __init__(self, name, *_):
            self.name, self.timesteps = name, [999, 499] if name == "diffusers" else [500, 0]

        def stop(self):
            pass

    monkeypatch.setattr(command, "Worker", Impostor)
    with pytest.raises(VerificationError, match=r"ours visits the timesteps 500, 0, but diffusers 999, 499"):
        compare(tmp_path, ["diffusers", "ours"], 1, 2, 1, 1)


def test_checkpoints_that_cannot_be_compared_are_named(tmp_path, capsys):
    assert main(["--checkpoint", str(tmp_path / "none")]) == 2
    assert f"{tmp_path / 'none'}: no such checkpoint folder" in capsys.readouterr().err
    folder = save_tiny_checkpoint(tmp_path / "given", num_train_timesteps=20)
    assert main(["--checkpoint", str(folder), "--steps", "21"]) == 2
    assert "--steps is 21, expected at most 20" in capsys.readouterr().err


def test_a_pickle_is_read_once_with_permission(tmp_path, monkeypatch):
    monkeypatch.setattr("export.to_openvino.export_openvino", lambda *_, **__: None)
    folder = save_tiny_checkpoint(tmp_path / "given", unet=LEAST)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(safetensors.torch.load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(InputError, match="`allow_pickle=True`"):
        prepare(Path(tempfile.mkdtemp(dir=tmp_path)), folder, 5)
    work = Path(tempfile.mkdtemp(dir=tmp_path))
    prepare(work, folder, 5, allow_pickle=True)
    assert load_checkpoint(work / "checkpoint").num_parameters > 0
    assert (work / "unet.onnx").exists()
