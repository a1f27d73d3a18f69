"""What the tensors of a U-Net of Ho et al. 2020 say of it, and where each has its place in diffusers' UNet2DModel.

The names are those of the PyTorch versions of the network: pytorch_diffusion, with Ho et al.'s published weights, and
DDIM (Song et al. 2021). `up.0` is the level of the full image, as `down.0` is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel

from diffusion.errors import InputError
from export.checkpoints.places import NORM_GROUPS, Place, Shape, check_widths, layer, placed, shape_of

_OTHER = "expected the U-Net of Ho et al. 2020 or DDIM; choose such a checkpoint"


@dataclass(frozen=True)
class HoLayout:
    """A network of Ho et al. 2020, as far as its tensors tell.

    Attributes:
        in_channels, out_channels: of the network.
        width: of the first convolution and of the sinusoidal embedding (`ch`).
        widths: channels of each level, from the full image down (`ch_mult`).
        num_res_blocks: per level.
        attention: whether each level attends.
    """

    in_channels: int
    out_channels: int
    width: int
    widths: tuple[int, ...]
    num_res_blocks: int
    attention: tuple[bool, ...]

    def places(self) -> Iterator[Place]:
        """Every tensor of the network."""
        yield from layer("temb.dense.0", "time_embedding.linear_1", (4 * self.width, self.width))
        yield from layer("temb.dense.1", "time_embedding.linear_2", (4 * self.width, 4 * self.width))
        yield from layer("conv_in", "conv_in", (self.width, self.in_channels, 3, 3))
        last, width, skipped = len(self.widths) - 1, self.width, [self.width]
        for level, next_width in enumerate(self.widths):
            for index in range(self.num_res_blocks):
                theirs, ours = f"down.{level}", f"down_blocks.{level}"
                yield from self._residual(f"{theirs}.block.{index}", f"{ours}.resnets.{index}", width, next_width)
                width = next_width
                if self.attention[level]:
                    yield from _attention(f"{theirs}.attn.{index}", f"{ours}.attentions.{index}", width)
                skipped.append(width)
            if level < last:
                place = f"down_blocks.{level}.downsamplers.0.conv"
                yield from layer(f"down.{level}.downsample.conv", place, (width, width, 3, 3))
                skipped.append(width)
        yield from self._residual("mid.block_1", "mid_block.resnets.0", width, width)
        yield from _attention("mid.attn_1", "mid_block.attentions.0", width)
        yield from self._residual("mid.block_2", "mid_block.resnets.1", width, width)
        for level in range(last, -1, -1):
            theirs, ours = f"up.{level}", f"up_blocks.{last - level}"
            for index in range(self.num_res_blocks + 1):
                before, width = width + skipped.pop(), self.widths[level]
                yield from self._residual(f"{theirs}.block.{index}", f"{ours}.resnets.{index}", before, width)
                if self.attention[level]:
                    yield from _attention(f"{theirs}.attn.{index}", f"{ours}.attentions.{index}", width)
            if level:
                yield from layer(f"{theirs}.upsample.conv", f"{ours}.upsamplers.0.conv", (width, width, 3, 3))
        yield from layer("norm_out", "conv_norm_out", (width,))
        yield from layer("conv_out", "conv_out", (self.out_channels, width, 3, 3))

    def _residual(self, theirs: str, ours: str, width: int, next_width: int) -> Iterator[Place]:
        yield from layer(f"{theirs}.norm1", f"{ours}.norm1", (width,))
        yield from layer(f"{theirs}.conv1", f"{ours}.conv1", (next_width, width, 3, 3))
        yield from layer(f"{theirs}.temb_proj", f"{ours}.time_emb_proj", (next_width, 4 * self.width))
        yield from layer(f"{theirs}.norm2", f"{ours}.norm2", (next_width,))
        yield from layer(f"{theirs}.conv2", f"{ours}.conv2", (next_width, next_width, 3, 3))
        if width != next_width:
            yield from layer(f"{theirs}.nin_shortcut", f"{ours}.conv_shortcut", (next_width, width, 1, 1))

    def unet_arguments(self, image_size: int) -> dict[str, Any]:
        """The arguments of `UNet2DModel`, which computes the same."""
        down = {True: "AttnDownBlock2D", False: "DownBlock2D"}
        up = {True: "AttnUpBlock2D", False: "UpBlock2D"}
        return {
            "sample_size": image_size,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "freq_shift": 1,
            "flip_sin_to_cos": False,
            "down_block_types": [down[each] for each in self.attention],
            "up_block_types": [up[each] for each in reversed(self.attention)],
            "block_out_channels": list(self.widths),
            "layers_per_block": self.num_res_blocks,
            "downsample_padding": 0,  # which pads below and to the right, as TensorFlow does
            "attention_head_dim": None,  # one head, whatever the width
            "norm_num_groups": NORM_GROUPS,
            "norm_eps": 1e-6,
        }

    def make_unet(self, image_size: int, weights: Mapping[str, torch.Tensor]) -> UNet2DModel:
        """The network with its weights, in eval mode and without gradients."""
        with torch.device("meta"):  # no memory and no random numbers for weights that the file replaces
            unet = UNet2DModel.from_config(self.unet_arguments(image_size)).eval()
        unet.load_state_dict(placed(self.places(), weights), strict=True, assign=True)
        return unet.requires_grad_(False)


def read_ho_layout(path: Path, shapes: Mapping[str, Shape]) -> HoLayout:
    """Find out the network's hyperparameters.

    Args:
        path: for messages.
        shapes: of the checkpoint's tensors, by name.

    Raises:
        InputError: a network that these projects do not make, or that UNet2DModel does not express.
    """
    shape = functools.partial(shape_of, path, shapes, _OTHER)
    levels = len({name.split(".")[1] for name in shapes if re.match(r"down\.\d+\.block\.", name)})
    blocks = len({name.split(".")[3] for name in shapes if re.match(r"down\.0\.block\.\d+\.", name)})
    if levels > 1 and "down.0.downsample.conv.weight" not in shapes:
        raise InputError(
            f"{path}: lacks down.0.downsample.conv.weight, expected convolutions that halve the image "
            "(resamp_with_conv: True); choose another checkpoint"
        )
    layout = HoLayout(
        in_channels=shape("conv_in.weight", 4)[1],
        out_channels=shape("conv_out.weight", 4)[0],
        width=shape("conv_in.weight", 4)[0],
        widths=tuple(shape(f"down.{level}.block.0.conv1.weight", 4)[0] for level in range(max(1, levels))),
        num_res_blocks=blocks,
        attention=tuple(f"down.{level}.attn.0.q.weight" in shapes for level in range(levels)),
    )
    if layout.widths[0] != layout.width:
        raise InputError(
            f"{path}: its first level has {layout.widths[0]} channels and its first convolution {layout.width}, "
            "expected equal widths (ch_mult that begins with 1); choose another checkpoint"
        )
    check_widths(path, layout.widths)
    return layout


def _attention(theirs: str, ours: str, width: int) -> Iterator[Place]:
    yield from layer(f"{theirs}.norm", f"{ours}.group_norm", (width,))
    for name, to in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        yield from layer(f"{theirs}.{name}", f"{ours}.{to}", (width, width, 1, 1), "matrix")
