"""An OpenAI U-Net as diffusers' UNet2DModel: the configuration, what a configuration cannot say, and the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import Timesteps

from diffusion.errors import InputError
from export.checkpoints.openai_layout import OpenAiLayout
from export.checkpoints.places import NORM_GROUPS, Place, placed


@dataclass(frozen=True)
class Heads:
    """How attention is divided, which no tensor tells.

    Attributes:
        num_heads: everywhere (`--num_heads`), unless `head_channels` is given.
        upsample_heads: in the output blocks (`--num_heads_upsample`).
        head_channels: width of a head instead (`--num_head_channels`).
        new_order: the channels of `qkv` are all of q, all of k, all of v; else those of each head lie together
            (`--use_new_attention_order`).
    """

    num_heads: int
    upsample_heads: int
    head_channels: int | None
    new_order: bool

    def at(self, width: int, upsampling: bool = False) -> int:
        """The number of heads of an attention with so many channels."""
        if self.head_channels is not None:
            return width // self.head_channels
        return self.upsample_heads if upsampling else self.num_heads

    def check(self, path: Path, layout: OpenAiLayout) -> None:
        """Raises InputError if the heads do not divide the widths."""
        for width in layout.attention_widths:
            divisors = {
                "--num_head_channels": self.head_channels,
                "--num_heads": None if self.head_channels else self.num_heads,
                "--num_heads_upsample": None if self.head_channels else self.upsample_heads,
            }
            for flag, divisor in divisors.items():
                if divisor is not None and (divisor < 1 or width % divisor):
                    raise InputError(
                        f"{path}: {flag} is {divisor}, but there is attention over {width} channels, which it does "
                        "not divide; give the value that the network was trained with"
                    )


class OpenAiNetwork(torch.nn.Module):
    """The network under its contract: it is given t, whatever it was trained on, and its conditions as they come.

    Args:
        unet: the network itself.
        scale: what t is multiplied by: 1000/T with `--rescale_timesteps`, else 1.
        enlarges: whether the last condition is an image to enlarge, as of guided-diffusion's `SuperResModel`.
    """

    def __init__(self, unet: UNet2DModel, scale: float = 1.0, enlarges: bool = False) -> None:
        super().__init__()
        self.unet, self._scale, self._enlarges = unet, scale, enlarges
        self.eval()

    def forward(self, x: torch.Tensor, t: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
        """The prediction, [N, C or 2C, H, W].

        Args:
            x: [N, C, H, W].
            t: [N], float32.
            conditions: class labels [N] of a network with classes, and then an image [N, C, h, w] of one that enlarges.
        """
        if self._enlarges:
            *labels, low_res = conditions
            size = (x.shape[2], x.shape[3])
            enlarged = torch.nn.functional.interpolate(low_res, size, mode="bilinear", align_corners=False)
            x, conditions = torch.cat([x, enlarged], dim=1), tuple(labels)
        if self._scale != 1.0:
            t = t * self._scale
        prediction: torch.Tensor = self.unet(x, t, *conditions, return_dict=False)[0]
        return prediction


def unet_arguments(layout: OpenAiLayout, heads: Heads, image_size: int) -> dict[str, Any]:
    """The arguments of `UNet2DModel`; see `why_not_plain` for what they cannot say."""
    attends, updown = layout.attention, layout.updown
    down = {True: "AttnDownBlock2D", False: "ResnetDownsampleBlock2D" if updown else "DownBlock2D"}
    up = {True: "AttnUpBlock2D", False: "ResnetUpsampleBlock2D" if updown else "UpBlock2D"}
    resampler = "resnet" if updown else "conv"
    width = layout.attention_widths[0]
    return {
        "sample_size": image_size,
        "in_channels": layout.in_channels,
        "out_channels": layout.out_channels,
        "time_embedding_dim": 4 * layout.model_channels,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "down_block_types": [down[each] for each in attends],
        "up_block_types": [up[each] for each in reversed(attends)],
        "block_out_channels": list(layout.widths),
        "layers_per_block": layout.num_res_blocks,
        "downsample_padding": 1,
        "downsample_type": resampler,
        "upsample_type": resampler,
        "attention_head_dim": width // heads.at(width),
        "norm_num_groups": NORM_GROUPS,
        # Without it UNet2DModel leaves the middle attention's normalization out where there is scale-shift.
        "attn_norm_num_groups": NORM_GROUPS,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if layout.scale_shift else "default",
        "num_class_embeds": layout.num_classes,
    }


def why_not_plain(layout: OpenAiLayout, heads: Heads) -> str:
    """What of the network no configuration of UNet2DModel expresses; empty if it expresses all."""
    if layout.model_channels != layout.widths[0]:
        return (
            f"its timesteps are embedded in {layout.model_channels} channels and its first level has "
            f"{layout.widths[0]}, which UNet2DModel takes to be equal"
        )
    head_dims = {
        width // heads.at(width, upsampling) for width in layout.attention_widths for upsampling in (False, True)
    }
    if len(head_dims) > 1:
        dims = " and ".join(map(str, sorted(head_dims)))
        return f"its attention heads have {dims} channels, where UNet2DModel has one width for all"
    return ""


def make_unet(layout: OpenAiLayout, heads: Heads, image_size: int, weights: Mapping[str, torch.Tensor]) -> UNet2DModel:
    """The network with its weights, in eval mode and without gradients.

    Args:
        layout, heads, image_size: of the network.
        weights: all of `OpenAiLayout.places`, by their names in the checkpoint.
    """
    arguments = unet_arguments(layout, heads, image_size)
    if why_not_plain(layout, heads):
        # One head for each, until it is given its own: a width of head may not divide every layer.
        arguments["attention_head_dim"] = None
    with torch.device("meta"):  # no memory and no random numbers for weights that the file replaces
        unet = UNet2DModel.from_config(arguments).eval()
        embedded = 4 * layout.model_channels
        unet.time_proj = Timesteps(layout.model_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        unet.time_embedding.linear_1 = torch.nn.Linear(layout.model_channels, embedded)
    for name, module in unet.named_modules():
        if isinstance(module, Attention):
            width = module.to_q.in_features
            module.heads = heads.at(width, upsampling=name.startswith("up_blocks"))
            module.scale = (width // module.heads) ** -0.5

    def split_qkv(place: Place, weight: torch.Tensor) -> torch.Tensor:
        width, upsampling = place.shape[0] // 3, place.to.startswith("up_blocks")
        rest = weight.shape[1:2]  # [3C, C, 1], or [3C] of a bias
        if heads.new_order:
            return weight.reshape(3, width, *rest)
        num_heads = heads.at(width, upsampling)
        grouped = weight.reshape(num_heads, 3, width // num_heads, *rest)  # q, k and v of each head together
        return grouped.transpose(0, 1).reshape(3, width, *rest)

    unet.load_state_dict(placed(layout.places(), weights, split_qkv), strict=True, assign=True)
    return unet.requires_grad_(False)
