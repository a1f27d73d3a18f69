"""diffusers' UNet2DModel from a configuration and the shape of the data."""

from __future__ import annotations

from typing import Any

from diffusion.errors import InputError
from diffusion.process import Process, SampleShape
from train.presets import NetworkConfig


def check_shape(config: NetworkConfig, shape: SampleShape, preset: str) -> None:
    """Whether the architecture can take samples of this shape.

    Raises:
        InputError: height or width is not a multiple of what the architecture halves them by.
    """
    by = config.downsampling
    if shape.height % by or shape.width % by:
        raise InputError(
            f"images are {shape.width}×{shape.height} pixels, the network of preset {preset} needs multiples of {by}; "
            "scale and crop with --image-size N, or choose another --preset"
        )


def make_network(config: NetworkConfig, process: Process) -> Any:
    """A freshly initialized `UNet2DModel` for `process`, drawn from torch's global generator.

    Where the lowest level has attention, or any other, `AttnDownBlock2D` and `AttnUpBlock2D` stand in its place
    on the way down and up.
    """
    from diffusers import UNet2DModel

    levels = range(len(config.block_out_channels))
    shape = process.sample
    return UNet2DModel(
        sample_size=shape.height if shape.height == shape.width else (shape.height, shape.width),
        in_channels=shape.channels,
        out_channels=process.prediction_channels,
        layers_per_block=config.layers_per_block,
        block_out_channels=config.block_out_channels,
        down_block_types=tuple(
            "AttnDownBlock2D" if level in config.attention_levels else "DownBlock2D" for level in levels
        ),
        up_block_types=tuple(
            "AttnUpBlock2D" if level in config.attention_levels else "UpBlock2D" for level in reversed(levels)
        ),
        attention_head_dim=config.attention_head_dim,
        norm_num_groups=config.norm_num_groups,
        norm_eps=config.norm_eps,
        dropout=config.dropout,
        downsample_padding=config.downsample_padding,
        flip_sin_to_cos=config.flip_sin_to_cos,
        freq_shift=config.freq_shift,
        num_class_embeds=None if process.label is None else process.label.num_labels,
    )
