"""Networks that benchmarks and tests run: published architectures with random weights, as costly as trained ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

# ddpm-cifar10-32, Ho et al. 2020: 35.7 million parameters, 12.44 GFLOP per image.
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


def random_network(seed: int = 0, total_timesteps: int = 1000, **arguments: Any) -> UNet2DModel:
    """A `UNet2DModel` with random weights, whose predictions vary as noise does, so that an error in them is seen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet2DModel(**arguments).eval()
        size = network.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        x = torch.randn(2, network.config.in_channels, height, width)
    with torch.inference_mode():
        # As whole numbers: a learned time embedding is indexed by them.
        t = torch.tensor([total_timesteps // 5, 7 * total_timesteps // 10])
        labels = None if network.config.num_class_embeds is None else torch.zeros(2, dtype=torch.int64)
        std = network(x, t, labels).sample.std()
    with torch.no_grad():
        network.conv_out.weight /= std
        network.conv_out.bias /= std
    return network


def save_cifar10_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Save ddpm-cifar10-32 with random weights as a `DDPMPipeline` (143 MB); return `folder`."""
    scheduler = DDPMScheduler(variance_type="fixed_large")
    DDPMPipeline(random_network(seed, **CIFAR10_UNET), scheduler).save_pretrained(folder)
    return folder
