"""Files that are no checkpoint of a DDPM, or not as they should be: one line each, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from diffusion.errors import InputError
from export import to_onnx
from export.checkpoints.registry import read_foreign
from tests.export.checkpoints.openai_networks import FLAGS, guided_network, save
from tests.original_projects import original, randomize

T = torch.zeros


class Canary:
    """Unpickled by Python's own reader, it would make a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


def refused(path: Path, flags: dict[str, Any] | None = None) -> str:
    with pytest.raises(InputError) as error:
        read_foreign(path, FLAGS if flags is None else flags, allow_pickle=True)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))
    return str(error.value)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_pickle_is_executed(zipped: bool, protocol: int, tmp_path: Path) -> None:
    path, place = tmp_path / "model.pt", tmp_path / "canary"
    content = {"input_blocks.0.0.weight": T(1), "time_embed.0.weight": Canary(place)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    assert re.search(r"holds objects of (posix|nt).mkdir, expected tensors and plain values alone", refused(path))
    path.write_bytes(pickle.dumps(Canary(place), protocol=protocol))
    assert "mkdir, expected tensors" in refused(path)
    assert not place.exists()


def test_a_pickle_needs_permission_and_safetensors_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = guided_network()
    path = save(network, tmp_path / "model.pt")
    with monkeypatch.context() as patched:
        patched.setattr(torch, "load", None)
        with pytest.raises(InputError, match="is a pickle.*give --allow-pickle"):
            read_foreign(path, FLAGS, allow_pickle=False)
    beside = tmp_path / "model.safetensors"
    safetensors.torch.save_file(network.state_dict(), beside)
    one, other = read_foreign(path, FLAGS, True), read_foreign(beside, FLAGS, allow_pickle=False)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 700.0])
    assert torch.equal(one.network(x, t), other.network(x, t))
    assert one.process.checkpoint_sha256 != other.process.checkpoint_sha256
    flags = [f"--{name}={value}" for name, value in FLAGS.items()]
    out = tmp_path / "unet.onnx"
    assert to_onnx.main(["--checkpoint", str(path), "--out", str(out), *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    assert "no such file" in refused(path)
    for content in (b"", b"PK\x03\x04", b"\x80\x02.", os.urandom(100), pickle.dumps([1, 2])):
        path.write_bytes(content)
        refused(path)
    whole = save(guided_network(), path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in refused(path)
    beside = tmp_path / "model.safetensors"
    beside.write_bytes(whole)
    assert "not a safetensors file" in refused(beside)
    tensorflow = tmp_path / "model.ckpt-790000.index"
    tensorflow.write_bytes(b"\0" * 100)
    assert "TensorFlow" in refused(tensorflow)


OTHERS: dict[str, tuple[Any, str]] = {
    "optimizer": ({"state": {0: {"step": 3, "exp_avg": T(2)}}, "param_groups": [{"lr": 0.1}]}, "optimizer's state"),
    "latent diffusion": (
        {"state_dict": {"first_stage_model.decoder.conv_in.weight": T(1), "model.diffusion_model.out.2.bias": T(1)}},
        "latent-diffusion model",
    ),
    "stable diffusion": (
        {"state_dict": {"cond_stage_model.transformer.weight": T(1), "first_stage_model.x": T(1)}},
        "text-to-image model",
    ),
    "stable diffusion, safetensors": ({"cond_stage_model.transformer.weight": T(1)}, "text-to-image model"),
    "GLIDE": (
        {"time_embed.0.weight": T(1), "input_blocks.0.0.weight": T(1), "transformer.resblocks.0.attn.qkv.weight": T(1)},
        "text-to-image model",
    ),
    "NCSN++": ({"model": {"module.all_modules.0.W": T(1), "module.sigmas": T(9)}, "step": 4}, "score_sde"),
    "EDM": ({"ema": {"model.map_noise.freqs": T(1), "model.map_layer0.weight": T(1)}}, "a network of EDM"),
    "nothing known": ({"conv1.weight": T(1), "fc.weight": T(1)}, "holds conv1.weight, fc.weight, expected a checkp"),
    "a list": ([1, 2], "holds list, expected a checkpoint"),
    "a tensor": (T(3), "holds Tensor, expected a checkpoint"),
    "a matrix": (T(3, 2), "holds Tensor, expected a checkpoint"),
    "an empty table": ({}, "holds nothing, expected a checkpoint"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_networks_are_called_by_their_names(kind: str, tmp_path: Path) -> None:
    content, says = OTHERS[kind]
    torch.save(content, tmp_path / "model.pt")
    assert says in refused(tmp_path / "model.pt")


def test_a_pickle_of_edm(tmp_path: Path) -> None:
    """Its network's class is rebuilt by a function of NVIDIA's, from source text inside the pickle."""
    path = tmp_path / "edm-cifar10-32x32-uncond-vp.pkl"
    path.write_bytes(b"\x80\x02}X\x03\x00\x00\x00emactorch_utils.persistence\n_reconstruct_persistent_obj\n)Rs.")
    assert "NVIDIA's EDM" in refused(path)


def test_a_classifier(tmp_path: Path) -> None:
    network = original("guided_diffusion.unet").EncoderUNetModel(
        16, 3, 32, 10, 1, (2,), channel_mult=(1, 2), num_head_channels=32, pool="attention"
    )
    assert "is a classifier of guided-diffusion" in refused(save(randomize(network, 0), tmp_path / "model.pt"))


def test_a_diffusers_file_without_its_folder(tmp_path: Path) -> None:
    torch.save({"conv_in.weight": T(1), "time_embedding.linear_1.weight": T(1)}, tmp_path / "weights.bin")
    assert "the folder of a diffusers pipeline" in refused(tmp_path / "weights.bin")


def test_tensors_larger_than_their_file(tmp_path: Path) -> None:
    """One number that is shown as many, labels of a billion classes: no memory is taken for them."""
    tensors = guided_network().state_dict()
    tensors["label_emb.weight"] = T(1, 1).expand(2**30, 128)
    torch.save(tensors, tmp_path / "model.pt")
    assert "label_emb.weight is 1073741824, expected a whole number from 1 to 1048576" in refused(tmp_path / "model.pt")
