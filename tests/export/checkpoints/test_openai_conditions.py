"""OpenAI's networks with class labels and with an image to enlarge, against their own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.errors import InputError
from export.checkpoints.openai_layout import read_layout
from export.checkpoints.openai_unet import Heads, OpenAiNetwork, make_unet
from export.checkpoints.registry import read_foreign
from tests.export.checkpoints.openai_networks import FLAGS, guided_network, save
from tests.original_projects import original, randomize

SMALL = 4


def super_resolution_network(**arguments: Any) -> torch.nn.Module:
    """guided-diffusion's `SuperResModel` of 16×16 images."""
    defaults: dict[str, Any] = {
        "image_size": 16,
        "in_channels": 3,
        "model_channels": 32,
        "out_channels": 6,
        "num_res_blocks": 1,
        "attention_resolutions": (2,),
        "channel_mult": (1, 2),
        "num_heads": 4,
        "use_scale_shift_norm": True,
        "resblock_updown": True,
    }
    return randomize(original("guided_diffusion.unet").SuperResModel(**defaults | arguments), 0)


def ours(network: torch.nn.Module, enlarges: bool = False) -> OpenAiNetwork:
    tensors = network.state_dict()
    layout = read_layout(Path("model.pt"), {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return OpenAiNetwork(make_unet(layout, Heads(4, 4, None, False), 16, tensors), enlarges=enlarges)


def inputs(num: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num)
    x, low_res = (torch.randn(num, 3, side, side, generator=generator) for side in (16, SMALL))
    return x, torch.linspace(0, 999, num + 1)[1:].round(), torch.arange(num) % 7, low_res


@pytest.mark.parametrize("num", [1, 2, 5])
def test_networks_with_conditions(num: int) -> None:
    x, t, y, low_res = inputs(num)
    labelled = guided_network(num_classes=7)
    for network, found, conditions, named in (
        (labelled, ours(labelled), (y,), {"y": y}),
        (enlarging := super_resolution_network(), ours(enlarging, True), (low_res,), {"low_res": low_res}),
        (
            both := super_resolution_network(num_classes=7, out_channels=3),
            ours(both, True),
            (y, low_res),
            {"y": y, "low_res": low_res},
        ),
    ):
        with torch.no_grad():
            expected = network(x, t, **named)
            difference = found(x, t, *conditions) - expected
        assert (difference.flatten(1).norm(dim=1) <= 1e-5 * expected.flatten(1).norm(dim=1)).all()


def test_an_image_is_enlarged_as_torch_does_by_default() -> None:
    """Corners are not aligned; with them aligned the prediction would be another."""
    network = super_resolution_network()
    x, t, _, low_res = inputs(2)
    aligned = torch.nn.functional.interpolate(low_res, (16, 16), mode="bilinear", align_corners=True)
    with torch.no_grad():
        found, expected = ours(network, True)(x, t, low_res), network(x, t, low_res=low_res)
        other = network(x, t, low_res=aligned)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert (other - expected).norm() > 1e-3 * expected.norm()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({}, "model.pt: enlarges images .it has 6 input and 6 output channels.; give --large_size and --small_size"),
        ({"image_size": None}, "--large_size, --small_size are not given"),
        ({"image_size": None, "large_size": 16, "small_size": 17}, "--small_size is 17, expected 1 to 16"),
        ({"image_size": None, "large_size": 15, "small_size": 4}, "large_size is 15, expected a multiple of 2"),
        ({"image_size": None, "large_size": 16, "small_size": 4, "learn_sigma": False}, "out.2.weight says True"),
    ],
)
def test_sizes_of_super_resolution(flags: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = save(super_resolution_network(), tmp_path / "model.pt")
    given = {name: value for name, value in {**FLAGS, **flags}.items() if value is not None}
    with pytest.raises(InputError, match=says):
        read_foreign(path, given, allow_pickle=True)


@pytest.mark.parametrize(("takes", "gives"), [(3, 4), (5, 5), (3, 9)])
def test_channels_that_mean_nothing(takes: int, gives: int, tmp_path: Path) -> None:
    path = save(guided_network(in_channels=takes, out_channels=gives), tmp_path / "model.pt")
    flags = FLAGS | ({"small_size": 4} if takes == gives else {})
    with pytest.raises(InputError, match=f"has {takes} input and {gives} output channels, expected C and C or 2C"):
        read_foreign(path, flags, allow_pickle=True)
