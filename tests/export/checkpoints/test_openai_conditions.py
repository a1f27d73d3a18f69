"""OpenAI's networks with class labels and with an image to enlarge, against their own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.conditions import FLOAT32, INT64, Condition
from diffusion.errors import InputError
from export.checkpoints.registry import read_foreign
from export.convert import convert
from runtime.engines.torch_checkpoint import load_checkpoint
from tests.export.checkpoints.openai_networks import FLAGS, SR_FLAGS, guided_network, save, super_resolution_network

LABEL, LOW_RES = Condition("y", INT64, classes=7), Condition("low_res", FLOAT32, (3, 4, 4))
NETWORKS: dict[str, tuple[Any, dict[str, Any], dict[str, Any], tuple[Condition, ...]]] = {
    "labels": (guided_network, {"num_classes": 7}, FLAGS, (LABEL,)),
    "an image": (super_resolution_network, {}, SR_FLAGS, (LOW_RES,)),
    "both": (super_resolution_network, {"num_classes": 7, "out_channels": 3}, SR_FLAGS, (LABEL, LOW_RES)),
    "labels, rescaled": (
        guided_network,
        {"num_classes": 7},
        FLAGS | {"diffusion_steps": 500, "rescale_timesteps": True},
        (LABEL,),
    ),
}


def conditions_of(conditions: tuple[Condition, ...], num: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(num)
    values = {"y": torch.arange(num) % 7, "low_res": torch.randn(num, 3, 4, 4, generator=generator)}
    return {condition.name: values[condition.name] for condition in conditions}


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_with_conditions(kind: str, tmp_path: Path) -> None:
    make, arguments, flags, conditions = NETWORKS[kind]
    network = make(**arguments)
    checkpoint = read_foreign(save(network, tmp_path / "model.pt"), flags, allow_pickle=True)
    process = checkpoint.process
    assert process.conditions == conditions
    assert process.sample.chw == (3, 16, 16)
    total = process.schedule.num_train_timesteps
    scale = 1000 / total if flags.get("rescale_timesteps") else 1.0
    for num in (1, 2, 5, 8):
        x, t = torch.randn(num, 3, 16, 16), torch.linspace(0, total - 1, num + 1)[1:].round()
        named = conditions_of(conditions, num)
        with torch.no_grad():
            expected = network(x, t * scale, **named)
            difference = checkpoint.network(x, t, *named.values()) - expected
        assert (difference.flatten(1).norm(dim=1) <= 1e-5 * expected.flatten(1).norm(dim=1)).all()


def test_an_image_is_enlarged_as_torch_does_by_default(tmp_path: Path) -> None:
    """Corners are not aligned; with them aligned the prediction would be another."""
    network = super_resolution_network()
    checkpoint = read_foreign(save(network, tmp_path / "model.pt"), SR_FLAGS, allow_pickle=True)
    x, t, low_res = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 500.0]), torch.randn(2, 3, 4, 4)
    aligned = torch.nn.functional.interpolate(low_res, (16, 16), mode="bilinear", align_corners=True)
    with torch.no_grad():
        found, expected = checkpoint.network(x, t, low_res), network(x, t, low_res=low_res)
        other = network(x, t, low_res=aligned)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert (other - expected).norm() > 1e-3 * expected.norm()


def test_a_network_with_labels_as_a_diffusers_folder(tmp_path: Path) -> None:
    path = save(guided_network(num_classes=7), tmp_path / "model.pt")
    convert(path, tmp_path / "folder", FLAGS, allow_pickle=True)
    read, written = read_foreign(path, FLAGS, allow_pickle=True), load_checkpoint(tmp_path / "folder")
    assert written.process.conditions == (LABEL,)
    x, t, y = np.ones((2, 3, 16, 16), np.float32), np.array([3, 500], np.float32), np.array([6, 0])
    assert np.array_equal(written.predict(x, t, y), read.predict(x, t, y))
    enlarging = save(super_resolution_network(), tmp_path / "upsampler.pt")
    with pytest.raises(InputError, match="it is given an image to enlarge, which no DDPMPipeline passes on"):
        convert(enlarging, tmp_path / "other", SR_FLAGS, allow_pickle=True)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (FLAGS, "model.pt: enlarges images .it has 6 input and 6 output channels.; give --large_size and --small_size"),
        ({**SR_FLAGS, "large_size": None}, "--large_size is not given"),
        ({**SR_FLAGS, "small_size": 17}, "--small_size is 17, expected 1 to 16"),
        ({**SR_FLAGS, "large_size": 15}, "large_size is 15, expected a multiple of 2"),
        ({**SR_FLAGS, "learn_sigma": False}, "out.2.weight says True"),
        ({**SR_FLAGS, "class_cond": True}, "label_emb.weight says False"),
    ],
)
def test_flags_of_super_resolution(flags: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = save(super_resolution_network(), tmp_path / "model.pt")
    given = {name: value for name, value in flags.items() if value is not None}
    with pytest.raises(InputError, match=says):
        read_foreign(path, given, allow_pickle=True)


@pytest.mark.parametrize(("takes", "gives"), [(3, 4), (5, 5), (3, 9)])
def test_channels_that_mean_nothing(takes: int, gives: int, tmp_path: Path) -> None:
    path = save(guided_network(in_channels=takes, out_channels=gives), tmp_path / "model.pt")
    flags = FLAGS | ({"small_size": 4} if takes == gives else {})
    with pytest.raises(InputError, match=f"has {takes} input and {gives} output channels, expected C and C or 2C"):
        read_foreign(path, flags, allow_pickle=True)
