"""What the tensors of an OpenAI U-Net say of it, and where each has its place in diffusers' UNet2DModel.

The network of Nichol & Dhariwal 2021 (improved-diffusion) and Dhariwal & Nichol 2021 (guided-diffusion). Its blocks are
numbered through: with L levels of R residual blocks, `input_blocks.0` is the first convolution, level i has
`input_blocks.1+i(R+1)` and those after it, the last of which halves the image; `output_blocks` run the other way.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from diffusion.errors import InputError
from export.checkpoints.places import Place, Shape, check_widths, layer, shape_of

_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_OTHER = "expected a U-Net of improved- or guided-diffusion; choose such a checkpoint"


@dataclass(frozen=True)
class OpenAiLayout:
    """A network of improved- or guided-diffusion, as far as its tensors tell.

    Attributes:
        in_channels, out_channels: of the network.
        model_channels: width of the sinusoidal embedding, to which the multipliers refer.
        widths: channels of each level, from the full image down.
        num_res_blocks: per level.
        attention: whether each level attends.
        scale_shift: whether the time embedding scales, too (`--use_scale_shift_norm`).
        updown: whether residual blocks change the resolution (`--resblock_updown`), or convolutions.
        num_classes: of the labels it is conditioned on, or None.
    """

    in_channels: int
    out_channels: int
    model_channels: int
    widths: tuple[int, ...]
    num_res_blocks: int
    attention: tuple[bool, ...]
    scale_shift: bool
    updown: bool
    num_classes: int | None

    @property
    def multipliers(self) -> tuple[float, ...]:
        """Of the levels' widths over `model_channels` (`--channel_mult`)."""
        return tuple(width / self.model_channels for width in self.widths)

    @property
    def attention_widths(self) -> tuple[int, ...]:
        """The different widths at which there is attention, the middle's among them."""
        levels = [width for width, attends in zip(self.widths, self.attention, strict=True) if attends]
        return tuple(dict.fromkeys([*levels, self.widths[-1]]))

    def places(self) -> Iterator[Place]:
        """Every tensor of the network."""
        embedded = 4 * self.model_channels
        yield from layer("time_embed.0", "time_embedding.linear_1", (embedded, self.model_channels))
        yield from layer("time_embed.2", "time_embedding.linear_2", (embedded, embedded))
        if self.num_classes is not None:
            yield Place("label_emb.weight", (self.num_classes, embedded), "class_embedding.weight")
        yield from layer("input_blocks.0.0", "conv_in", (self.widths[0], self.in_channels, 3, 3))
        last, block, width, skipped = len(self.widths) - 1, 0, self.widths[0], [self.widths[0]]
        for level, next_width in enumerate(self.widths):
            ours = f"down_blocks.{level}"
            for index in range(self.num_res_blocks):
                block += 1
                yield from self._residual(f"input_blocks.{block}.0", f"{ours}.resnets.{index}", width, next_width)
                width = next_width
                if self.attention[level]:
                    yield from _attention(f"input_blocks.{block}.1", f"{ours}.attentions.{index}", width)
                skipped.append(width)
            if level < last:
                block += 1
                yield from self._resampler(f"input_blocks.{block}.0", f"{ours}.downsamplers.0", "op", width)
                skipped.append(width)
        yield from self._residual("middle_block.0", "mid_block.resnets.0", width, width)
        yield from _attention("middle_block.1", "mid_block.attentions.0", width)
        yield from self._residual("middle_block.2", "mid_block.resnets.1", width, width)
        block = 0
        for level in reversed(range(len(self.widths))):
            ours, next_width = f"up_blocks.{last - level}", self.widths[level]
            for index in range(self.num_res_blocks + 1):
                theirs = f"output_blocks.{block}"
                yield from self._residual(f"{theirs}.0", f"{ours}.resnets.{index}", width + skipped.pop(), next_width)
                width = next_width
                if self.attention[level]:
                    yield from _attention(f"{theirs}.1", f"{ours}.attentions.{index}", width)
                if level and index == self.num_res_blocks:
                    after = 2 if self.attention[level] else 1
                    yield from self._resampler(f"{theirs}.{after}", f"{ours}.upsamplers.0", "conv", width)
                block += 1
        yield from layer("out.0", "conv_norm_out", (width,))
        yield from layer("out.2", "conv_out", (self.out_channels, width, 3, 3))

    def _residual(self, theirs: str, ours: str, width: int, next_width: int) -> Iterator[Place]:
        shapes: dict[str, Shape] = {
            "in_layers.0": (width,),
            "in_layers.2": (next_width, width, 3, 3),
            "emb_layers.1": (next_width * (2 if self.scale_shift else 1), 4 * self.model_channels),
            "out_layers.0": (next_width,),
            "out_layers.3": (next_width, next_width, 3, 3),
        }
        if width != next_width:
            shapes["skip_connection"] = (next_width, width, 1, 1)
        for name, shape in shapes.items():
            yield from layer(f"{theirs}.{name}", f"{ours}.{_RESIDUAL[name]}", shape)

    def _resampler(self, theirs: str, ours: str, convolution: str, width: int) -> Iterator[Place]:
        if self.updown:
            yield from self._residual(theirs, ours, width, width)
        else:
            yield from layer(f"{theirs}.{convolution}", f"{ours}.conv", (width, width, 3, 3))


def read_layout(path: Path, shapes: Mapping[str, Shape]) -> OpenAiLayout:
    """Find out the network's hyperparameters.

    Args:
        path: for messages.
        shapes: of the checkpoint's tensors, by name.

    Raises:
        InputError: a network that these projects' scripts do not make.
    """
    shape = functools.partial(shape_of, path, shapes, _OTHER)
    blocks = {kind: _count(shapes, kind) for kind in ("input_blocks", "output_blocks")}
    if blocks["input_blocks"] != blocks["output_blocks"]:
        raise InputError(
            f"{path}: has {blocks['input_blocks']} input_blocks and {blocks['output_blocks']} output_blocks, expected "
            f"as many of each, {_OTHER}"
        )
    # Every level but the last ends its output blocks by an upsampler, which comes after the attention if there is any.
    upsampler = re.compile(r"output_blocks\.(\d+)\.[12]\.(?:conv|in_layers\.2)\.weight")
    ends = sorted(int(match[1]) for match in map(upsampler.fullmatch, shapes) if match)
    per_level = ends[0] + 1 if ends else blocks["output_blocks"]
    levels, rest = divmod(blocks["input_blocks"], per_level)
    if rest or per_level < 2 or ends != [per_level * (level + 1) - 1 for level in range(levels - 1)]:
        raise InputError(
            f"{path}: its output_blocks enlarge the image at {ends}, of {blocks['output_blocks']}, expected levels of "
            f"equally many blocks, {_OTHER}"
        )
    firsts = [f"input_blocks.{1 + level * per_level}" for level in range(levels)]
    widths = tuple(shape(f"{first}.0.in_layers.2.weight", 4)[0] for first in firsts)
    check_widths(path, widths)
    embedding = shape(f"{firsts[0]}.0.emb_layers.1.weight", 2)[0]
    model_channels = shape("time_embed.0.weight", 2)[1]
    if model_channels < 2:
        raise InputError(f"{path}: its timesteps are embedded in {model_channels} channels, {_OTHER}")
    return OpenAiLayout(
        in_channels=shape("input_blocks.0.0.weight", 4)[1],
        out_channels=shape("out.2.weight", 4)[0],
        model_channels=model_channels,
        widths=widths,
        num_res_blocks=per_level - 1,
        attention=tuple(f"{first}.1.qkv.weight" in shapes for first in firsts),
        scale_shift=embedding == 2 * widths[0],
        updown=f"input_blocks.{per_level}.0.in_layers.2.weight" in shapes,
        num_classes=shape("label_emb.weight", 2)[0] if "label_emb.weight" in shapes else None,
    )


def _count(shapes: Mapping[str, Shape], kind: str) -> int:
    return len({name.split(".")[1] for name in shapes if re.match(rf"{kind}\.\d+\.", name)})


def _attention(theirs: str, ours: str, width: int) -> Iterator[Place]:
    yield from layer(f"{theirs}.norm", f"{ours}.group_norm", (width,))
    for kind, shape in (("weight", (3 * width, width, 1)), ("bias", (3 * width,))):
        yield Place(f"{theirs}.qkv.{kind}", shape, f"{ours}.{{}}.{kind}", "qkv")
    yield from layer(f"{theirs}.proj_out", f"{ours}.to_out.0", (width, width, 1), "matrix")
