"""The models that OpenAI published with improved-diffusion and guided-diffusion: the flags of their READMEs.

Keys are flag names of the projects, values as those flags take them; where a README leaves a flag out, the default of
the project. Those that the tensors tell, too, let a model that is named wrongly be refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What the projects' scripts choose by the size of the image where --channel_mult is not given.
CHANNEL_MULTIPLIERS: dict[int, tuple[tuple[float, ...], ...]] = {
    512: ((0.5, 1, 1, 2, 2, 4, 4), (1, 1, 2, 2, 4, 4)),  # the latter of super-resolution
    256: ((1, 1, 2, 2, 4, 4),),
    128: ((1, 1, 2, 3, 4),),
    64: ((1, 2, 3, 4),),
    32: ((1, 2, 2, 2),),
}


def _guided(size: int, channels: int, **flags: Any) -> dict[str, Any]:
    return {
        "image_size": size,
        "num_channels": channels,
        "channel_mult": _listed(CHANNEL_MULTIPLIERS[size][0]),
        "num_res_blocks": 2,
        "attention_resolutions": "32,16,8",
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        "class_cond": True,
        "learn_sigma": True,
        "use_new_attention_order": False,
        "diffusion_steps": 1000,
        "noise_schedule": "linear",
        "rescale_timesteps": False,
        **flags,
    }


def _improved(size: int, channels: int, **flags: Any) -> dict[str, Any]:
    return {
        "image_size": size,
        "num_channels": channels,
        "channel_mult": _listed(CHANNEL_MULTIPLIERS[size][0]),
        "num_res_blocks": 3,
        "attention_resolutions": "16,8",
        "num_heads": 4,
        "use_scale_shift_norm": True,
        "resblock_updown": False,
        "class_cond": False,
        "learn_sigma": True,
        "use_new_attention_order": False,
        "diffusion_steps": 4000,
        "noise_schedule": "cosine",
        "rescale_timesteps": True,
        **flags,
    }


def _enlarging(flags: Mapping[str, Any], small_size: int) -> dict[str, Any]:
    size = flags["image_size"]
    others = {name: value for name, value in flags.items() if name != "image_size"}
    multipliers = _listed(CHANNEL_MULTIPLIERS[size][-1])
    return {**others, "channel_mult": multipliers, "large_size": size, "small_size": small_size}


def _listed(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


OPENAI_MODELS: Mapping[str, Mapping[str, Any]] = {
    # Dhariwal & Nichol 2021: guided-diffusion, files of July 2021.
    "guided-64": _guided(
        64, 192, num_res_blocks=3, num_head_channels=64, noise_schedule="cosine", use_new_attention_order=True
    ),
    "guided-128": _guided(128, 256, num_heads=4),
    "guided-256": _guided(256, 256, num_head_channels=64),
    "guided-256-uncond": _guided(256, 256, num_head_channels=64, class_cond=False),
    "guided-512": _guided(512, 256, num_head_channels=64),
    "guided-64-256": _enlarging(_guided(256, 192, num_heads=4), 64),
    "guided-128-512": _enlarging(_guided(512, 192, num_head_channels=64, attention_resolutions="32,16"), 128),
    "guided-lsun": _guided(256, 256, num_head_channels=64, class_cond=False),
    # Nichol & Dhariwal 2021: improved-diffusion, files of March 2021; L_hybrid and L_vlb differ in training alone.
    "improved-imagenet64": _improved(64, 128),
    "improved-cifar10": _improved(32, 128),
    "improved-imagenet64-cond": _improved(64, 192, class_cond=True, rescale_timesteps=False),
    "improved-64-256": _enlarging(
        _improved(256, 192, num_res_blocks=2, class_cond=True, noise_schedule="linear", rescale_timesteps=False), 64
    ),
    "improved-lsun": _improved(
        256,
        128,
        num_res_blocks=2,
        attention_resolutions="16",
        num_heads=1,
        use_scale_shift_norm=False,
        diffusion_steps=1000,
        noise_schedule="linear",
        rescale_timesteps=False,
    ),
}
