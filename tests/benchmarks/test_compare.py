"""Peers that mean the same draw the same images, each in a process of its own."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.compare.command import compare, main, prepare
from benchmarks.compare.peers import PEERS
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from tests.checkpoints import save_tiny_checkpoint
from tests.gaussian import GaussianNetwork


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


def test_diffusers_draws_the_same_images_from_our_noise(tmp_path):
    save_tiny_checkpoint(tmp_path / "checkpoint")
    diffusers, ours = compare(tmp_path, ["diffusers", "ours, PyTorch"], batch_size=2, num_steps=5, rounds=1, threads=1)
    assert diffusers["peer"] == "diffusers"
    assert 0.0 < ours["relative_error"] < 1e-4


def test_a_peer_that_dies_is_an_error_of_one_line(tmp_path):
    with pytest.raises(InputError, match="ours, ONNX Runtime: the peer ended with exit code 1"):
        compare(tmp_path, ["ours, ONNX Runtime"], batch_size=1, num_steps=2, rounds=1, threads=1)


def test_unknown_peers_are_refused(capsys):
    assert main(["--peers", "magic"]) == 2
    assert f"expected one of {', '.join(PEERS)}" in capsys.readouterr().err


def test_a_checkpoint_whose_weights_are_a_pickle(tmp_path):
    checkpoint = save_tiny_checkpoint(tmp_path / "safe")
    shutil.copytree(checkpoint, tmp_path / "pickle")
    weights = tmp_path / "pickle" / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(InputError, match="--allow-pickle"):
        prepare(tmp_path, tmp_path / "pickle")
    (tmp_path / "checkpoint").unlink()
    prepare(tmp_path, tmp_path / "pickle", allow_pickle=True)
    copied, saved = (load_file(folder / "unet" / weights.name) for folder in (tmp_path / "checkpoint", checkpoint))
    assert copied.keys() == saved.keys()
    assert all(torch.equal(copied[name], value) for name, value in saved.items())
