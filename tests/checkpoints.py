"""Checkpoints with random weights for tests, written by diffusers itself as a user's would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from runtime.engines.torch_checkpoint import Network

# The published ddpm-cifar10-32, Ho et al. 2020: 35.7 million parameters.
CIFAR10_UNET: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
}


def save_tiny_checkpoint(
    folder: Path,
    *,
    channels: int = 1,
    size: int | tuple[int, int] = 8,
    variance_type: str = "fixed_large",
    prediction_type: str = "epsilon",
    seed: int = 0,
    unet: dict[str, Any] | None = None,
    **scheduler: Any,
) -> Path:
    """Save a network of about 40,000 random parameters, with attention, as a `DDPMPipeline`; return `folder`.

    Args:
        folder: made if missing.
        channels, size: of the samples; `size` is a number or (height, width), multiples of 2.
        variance_type: with `learned_range` the network has twice as many output channels.
        prediction_type: any of ours; diffusers does not check it.
        seed: of the weights.
        unet: further arguments of `UNet2DModel`, or others than the default ones.
        scheduler: further arguments of `DDPMScheduler`: `num_train_timesteps`, `beta_schedule`, …
    """
    torch_random_state = torch.get_rng_state()
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels * (2 if variance_type == "learned_range" else 1),
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    network = UNet2DModel(**(arguments | (unet or {})))
    torch.set_rng_state(torch_random_state)
    return _save(
        folder, network, DDPMScheduler(variance_type=variance_type, prediction_type=prediction_type, **scheduler)
    )


def save_cifar10_sized_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Save the 35.7 M-parameter network of Ho et al. 2020 with random weights (143 MB); return `folder`."""
    torch_random_state = torch.get_rng_state()
    torch.manual_seed(seed)
    network = UNet2DModel(**CIFAR10_UNET)
    torch.set_rng_state(torch_random_state)
    return _save(folder, network, DDPMScheduler(variance_type="fixed_large"))


def _save(folder: Path, network: UNet2DModel, scheduler: DDPMScheduler) -> Path:
    _scale_to_unit_variance(network, scheduler.config.num_train_timesteps)
    DDPMPipeline(network, scheduler).save_pretrained(folder, safe_serialization=True)
    return Path(folder)


def _scale_to_unit_variance(network: UNet2DModel, num_train_timesteps: int) -> None:
    """Scale the output layer so that predictions vary like noise does: an error in them is then seen."""
    size = network.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, network.config.in_channels, height, width, generator=generator)
    with torch.inference_mode():
        prediction = Network(network)(x, torch.tensor([0.2, 0.7]).mul(num_train_timesteps).floor())
    with torch.no_grad():
        network.conv_out.weight /= prediction.std()
        network.conv_out.bias /= prediction.std()
