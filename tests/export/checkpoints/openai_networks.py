"""Small networks of OpenAI's own code with random weights, saved as its scripts save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.original_projects import original, randomize


def guided_network(seed: int = 0, kind: str = "UNetModel", **arguments: Any) -> torch.nn.Module:
    """guided-diffusion's `UNetModel`: two levels of 32 and 64 channels at 16×16, attention at 8×8."""
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
    return randomize(getattr(original("guided_diffusion.unet"), kind)(**defaults | arguments), seed)


def super_resolution_network(**arguments: Any) -> torch.nn.Module:
    """guided-diffusion's `SuperResModel`, of the same size."""
    return guided_network(kind="SuperResModel", **arguments)


def improved_network(seed: int = 0, **arguments: Any) -> torch.nn.Module:
    """improved-diffusion's `UNetModel`, of the same size."""
    module = original("improved_diffusion_for_SMLM.improved_diffusion.unet")
    defaults: dict[str, Any] = {
        "in_channels": 3,
        "model_channels": 32,
        "out_channels": 6,
        "num_res_blocks": 1,
        "attention_resolutions": (2,),
        "channel_mult": (1, 2),
        "num_heads": 4,
        "use_scale_shift_norm": True,
    }
    return randomize(module.UNetModel(**defaults | arguments), seed)


def save(network: torch.nn.Module, path: Path) -> Path:
    """Write the state dict, as the projects' training scripts do; returns the path."""
    torch.save(network.state_dict(), path)
    return path


FLAGS = {
    "image_size": 16,
    "num_heads": 4,
    "use_new_attention_order": False,
    "noise_schedule": "linear",
    "diffusion_steps": 1000,
}
SR_FLAGS = {name: value for name, value in FLAGS.items() if name != "image_size"} | {"large_size": 16, "small_size": 4}
