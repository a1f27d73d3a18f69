"""The networks that benchmarks run: published architectures with random weights, which cost what trained ones cost."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

# ddpm-cifar10-32, Ho et al. 2020: 35.7 million parameters, 12.44 GFLOP per image.
CIFAR10_UNET = {
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


def save_cifar10_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Save ddpm-cifar10-32 with random weights as a `DDPMPipeline` (143 MB); return `folder`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = UNet2DModel(**CIFAR10_UNET)
    DDPMPipeline(network, DDPMScheduler(variance_type="fixed_large")).save_pretrained(folder)
    return folder
