"""Checkpoints with random weights for tests, written by diffusers itself as a user's would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DDPMPipeline, DDPMScheduler

from benchmarks.networks import random_network

# The least network that diffusers makes, for what is not about the network: a quarter of the time to trace.
LEAST: dict[str, Any] = {
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "add_attention": False,
    "mid_block_type": None,
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
    process = DDPMScheduler(variance_type=variance_type, prediction_type=prediction_type, **scheduler)
    network = random_network(seed, process.config.num_train_timesteps, **(arguments | (unet or {})))
    DDPMPipeline(network, process).save_pretrained(folder, safe_serialization=True)
    return Path(folder)
