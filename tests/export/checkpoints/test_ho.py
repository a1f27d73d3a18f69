"""Checkpoints of Ho et al. and DDIM: the network equals one written from the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from export.checkpoints.registry import read_foreign
from tests.export.checkpoints.ho_network import HoNetwork
from tests.export.checkpoints.relative_errors import relative_errors

FLAGS = {
    "image_size": 16,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "num_diffusion_timesteps": 1000,
    "var_type": "fixedlarge",
}
NETWORKS: dict[str, dict[str, Any]] = {
    "attention at 8": {},
    "attention at two widths": {"attention": (0, 1)},
    "three levels, two blocks": {"ch_mult": (1, 1, 2), "num_res_blocks": 2, "attention": (1,)},
    "gray": {"channels": 1, "attention": ()},
}


def read(content: object, folder: Path, **flags: Any):
    torch.save(content, folder / "model.ckpt")
    return read_foreign(folder / "model.ckpt", FLAGS | flags, allow_pickle=True)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_network(kind: str, tmp_path: Path) -> None:
    network = HoNetwork(**NETWORKS[kind])
    checkpoint = read(network.tensors, tmp_path)
    assert max(relative_errors(network, checkpoint.network, checkpoint.process.sample.chw, 1000)) <= 1e-5
    assert checkpoint.unet_config is not None


def test_another_size(tmp_path: Path) -> None:
    network = HoNetwork()
    checkpoint = read(network.tensors, tmp_path, image_size=22)
    assert max(relative_errors(network, checkpoint.network, (3, 22, 22), 1000)) <= 1e-5


def test_the_list_that_ddim_saves(tmp_path: Path) -> None:
    raw, average = HoNetwork(seed=1), HoNetwork(seed=2)
    parallel = {f"module.{name}": tensor for name, tensor in raw.tensors.items()}
    optimizer = {"state": {}, "param_groups": [{"lr": 2e-4}]}
    states = [parallel, optimizer, 3, 5000, average.tensors]
    for content, flags, network, what in (
        (states, {}, average, "the moving average (part 4 of the list)"),
        (states, {"ema": False}, raw, "part 0 of the list"),
        (states[:4], {}, raw, "part 0 of the list"),
        (parallel, {}, raw, None),
    ):
        checkpoint = read(content, tmp_path, **flags)
        assert max(relative_errors(network, checkpoint.network, (3, 16, 16), 1000)) <= 1e-5
        assert checkpoint.notes == ((f"{tmp_path / 'model.ckpt'}: reading {what}",) if what else ())


def test_the_process(tmp_path: Path) -> None:
    tensors = HoNetwork().tensors
    process = read(tensors, tmp_path).process
    assert process.schedule == NoiseSchedule.make("linear", 1000, 1e-4, 0.02)
    assert (process.prediction_type, process.variance_type, process.clip_sample) == ("epsilon", "fixed_large", 1.0)
    assert read(tensors, tmp_path, var_type="fixedsmall").process.variance_type == "fixed_small"
    # DDIM's configurations, from its description of each.
    T = 10
    ends = {"beta_start": 0.001, "beta_end": 0.1, "num_diffusion_timesteps": T}
    steps = np.arange(T) / (T - 1)
    expected = {
        "quad": (0.001**0.5 + steps * (0.1**0.5 - 0.001**0.5)) ** 2,
        "const": np.full(T, 0.1),
        "sigmoid": 0.001 + (0.1 - 0.001) / (1 + np.exp(6 - 12 * steps)),
    }
    for name, betas in expected.items():
        found = read(tensors, tmp_path, beta_schedule=name, **ends).process.schedule.betas
        np.testing.assert_allclose(found, betas, rtol=1e-12)
    with pytest.raises(InputError, match="ends at alpha_bar = 0, where epsilon says nothing"):
        read(tensors, tmp_path, beta_schedule="jsd", **ends)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"image_size": 15}, "image_size is 15, expected a multiple of 2"),
        ({"ch": 64}, "--ch is 64 .--ch., but conv_in.weight says 32"),
        ({"ch_mult": "1,2,2"}, "--ch_mult is 1,2,2 .* but down says 1,2"),
        (
            {"beta_schedule": "const", "num_diffusion_timesteps": 10**15},
            "--num_diffusion_timesteps is 1000000000000000, expected 1 to 1048575",
        ),
        ({"num_res_blocks": 2}, "--num_res_blocks is 2 .* says 1"),
        ({"var_type": "learned"}, "--var_type is 'learned', expected one of fixedsmall, fixedlarge"),
        ({"noise_schedule": "linear"}, "--noise_schedule is no flag of Ho et al. 2020 or DDIM"),
        ({"model": "ddpm-cifar10"}, "--image_size is 16, but --model ddpm-cifar10 was trained with 32"),
    ],
)
def test_flags_that_do_not_fit(flags: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        read(HoNetwork().tensors, tmp_path, **flags)


def test_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    torch.save(HoNetwork().tensors, tmp_path / "model.ckpt")
    given = {name: value for name, value in FLAGS.items() if name not in ("beta_end", "var_type")}
    with pytest.raises(InputError, match="--beta_end, --var_type are not given.*--model ddpm-cifar10"):
        read_foreign(tmp_path / "model.ckpt", given, allow_pickle=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors.pop("down.0.downsample.conv.weight"), "resamp_with_conv"),
        (
            lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("down.")],
            "lacks down.0.block.0.conv1.weight",
        ),
        (lambda tensors: tensors.pop("up.1.block.0.norm1.bias"), r"lacks up.1.block.0.norm1.bias \[128\]"),
        (lambda tensors: tensors.update(extra=torch.zeros(2, 3)), r"also holds extra \[2, 3\]"),
        (lambda tensors: tensors["mid.attn_1.q.weight"].fill_(torch.nan), "mid.attn_1.q.weight holds values that are"),
        (lambda tensors: tensors.update({"norm_out.bias": torch.zeros(7)}), r"norm_out.bias has shape \[7\]"),
        (lambda tensors: tensors.update({"norm_out.bias": torch.zeros(32, dtype=torch.int8)}), "of type int8"),
        (lambda tensors: tensors.update({"conv_in.weight": torch.zeros(16, 3, 3, 3)}), "ch_mult that begins with 1"),
    ],
)
def test_tensors_that_do_not_fit(change: Any, says: str, tmp_path: Path) -> None:
    tensors = HoNetwork().tensors
    change(tensors)
    with pytest.raises(InputError, match=says):
        read(tensors, tmp_path)
