"""OpenAI's checkpoints: the network that is read equals the original project's own, at every size and setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.checkpoints.registry import read_foreign
from tests.export.checkpoints.openai_networks import FLAGS, guided_network, improved_network, save
from tests.export.checkpoints.relative_errors import relative_errors

TOLERANCE = 1e-5

# Arguments of the original network, and the flags that its tensors do not tell.
GUIDED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "legacy order": ({}, {}),
    "new order": ({"use_new_attention_order": True}, {"use_new_attention_order": True}),
    "one head": ({"num_heads": 1}, {"num_heads": 1}),
    "width of a head": ({"num_head_channels": 8}, {"num_head_channels": 8}),
    "heads of the output blocks": ({"num_heads_upsample": 2}, {"num_heads_upsample": 2}),
    "up and down by convolution": ({"resblock_updown": False}, {}),
    "no scale-shift": ({"use_scale_shift_norm": False}, {}),
    "neither": ({"resblock_updown": False, "use_scale_shift_norm": False}, {}),
    "attention at two widths": ({"attention_resolutions": (1, 2)}, {}),
    "attention at two widths, new order": (
        {"attention_resolutions": (1, 2), "num_head_channels": 16, "use_new_attention_order": True},
        {"num_head_channels": 16, "use_new_attention_order": True},
    ),
    "attention in the middle alone": ({"attention_resolutions": ()}, {}),
    "narrower than the embedding": ({"channel_mult": (0.5, 1), "model_channels": 64}, {}),
    "gray, fixed variance": ({"in_channels": 1, "out_channels": 1}, {}),
    "one level of odd size": ({"channel_mult": (1,), "image_size": 9, "attention_resolutions": ()}, {"image_size": 9}),
    "three levels": (
        {"channel_mult": (1, 2, 3), "image_size": 20, "num_res_blocks": 2, "attention_resolutions": (2, 4)},
        {"image_size": 20},
    ),
}


def read(network: torch.nn.Module, folder: Path, **flags: Any):
    return read_foreign(save(network, folder / "model.pt"), FLAGS | flags, allow_pickle=True)


@pytest.mark.parametrize("kind", GUIDED)
def test_guided_diffusion(kind: str, tmp_path: Path) -> None:
    arguments, flags = GUIDED[kind]
    network = guided_network(**arguments)
    checkpoint = read(network, tmp_path, **flags)
    errors = relative_errors(network, checkpoint.network, checkpoint.process.sample.chw, 1000, 1.0)
    assert max(errors) <= TOLERANCE
    assert checkpoint.num_parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("num_heads", [1, 4])
@pytest.mark.parametrize("scale_shift", [True, False])
def test_improved_diffusion(num_heads: int, scale_shift: bool, tmp_path: Path) -> None:
    network = improved_network(
        num_heads=num_heads, use_scale_shift_norm=scale_shift, channel_mult=(1, 2, 2), attention_resolutions=(2, 4)
    )
    checkpoint = read(network, tmp_path, num_heads=num_heads)
    assert max(relative_errors(network, checkpoint.network, (3, 16, 16), 1000, 1.0)) <= TOLERANCE


def test_rescaled_timesteps_are_fractions_of_ours(tmp_path: Path) -> None:
    network = improved_network()
    checkpoint = read(network, tmp_path, diffusion_steps=4000, rescale_timesteps=True)
    assert max(relative_errors(network, checkpoint.network, (3, 16, 16), 4000, 1000 / 4000)) <= TOLERANCE
    as_they_are = read(network, tmp_path, diffusion_steps=4000, rescale_timesteps=False)
    assert max(relative_errors(network, as_they_are.network, (3, 16, 16), 4000, 1.0)) <= TOLERANCE
    assert np.max(relative_errors(network, as_they_are.network, (3, 16, 16), 4000, 0.25)) > 0.01
