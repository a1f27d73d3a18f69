"""What a user says of an OpenAI checkpoint, by the flags of its scripts, and whether the tensors agree."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion.errors import InputError
from export.checkpoints.flags import IMAGE_SIZE, NUM_RES_BLOCKS, CheckpointFlag, GivenFlags
from export.checkpoints.openai_layout import OpenAiLayout
from export.checkpoints.openai_models import CHANNEL_MULTIPLIERS, OPENAI_MODELS

HINT = f", or name a published model: --model {', '.join(OPENAI_MODELS)}"
# Everything that the projects' scripts take, so that a user can paste the flags of a README.
OPENAI_FLAGS = (
    IMAGE_SIZE,
    CheckpointFlag("large_size", int, "of a super-resolution model, instead of image_size"),
    CheckpointFlag("small_size", int, "of the image that it enlarges"),
    CheckpointFlag("num_heads", int, "attention heads, however wide the layer"),
    CheckpointFlag("num_heads_upsample", int, "of the output blocks (default -1: as num_heads)"),
    CheckpointFlag("num_head_channels", int, "width of a head, instead of num_heads (-1: not used)"),
    CheckpointFlag("use_new_attention_order", bool, "how q, k and v lie; False but for guided-64"),
    CheckpointFlag("noise_schedule", str, "of the noise", ("linear", "cosine")),
    CheckpointFlag("diffusion_steps", int, "T"),
    CheckpointFlag("rescale_timesteps", bool, "whether the network was shown t·1000/T"),
    CheckpointFlag("predict_xstart", bool, "whether it predicts x_start (default False: epsilon)"),
    CheckpointFlag("sigma_small", bool, "without learn_sigma: fixed_small (default False: fixed_large)"),
    CheckpointFlag("learn_sigma", bool, "checked against the tensors, as are those below"),
    CheckpointFlag("class_cond", bool, "whether it is given class labels"),
    CheckpointFlag("num_channels", int, "width to which channel_mult refers"),
    CheckpointFlag("channel_mult", str, "such as 1,2,2,2"),
    NUM_RES_BLOCKS,
    CheckpointFlag("attention_resolutions", str, "such as 16,8"),
    CheckpointFlag("use_scale_shift_norm", bool, "whether the embedding scales, too"),
    CheckpointFlag("resblock_updown", bool, "whether residual blocks change the size"),
    CheckpointFlag("dropout", float, "of training: no matter here, nor are those below"),
    CheckpointFlag("use_fp16", bool, "see --fp16 for engines"),
    CheckpointFlag("use_checkpoint", bool, "of training"),
    CheckpointFlag("use_kl", bool, "of training"),
    CheckpointFlag("rescale_learned_sigmas", bool, "of training"),
    CheckpointFlag("timestep_respacing", str, "of sampling: `runtime.sample --steps N --spacing linspace`"),
)


@dataclass(frozen=True)
class Images:
    """What the network takes and gives, as far as it takes tensors and flags together to know.

    Attributes:
        channels: of a sample.
        size: its height and width.
        small_size: of the image that it enlarges, or None.
        learn_sigma: whether its output has a learned variance.
    """

    channels: int
    size: int
    small_size: int | None
    learn_sigma: bool


def images_of(path: Path, layout: OpenAiLayout, flags: GivenFlags) -> Images:
    """What the network takes and gives.

    A super-resolution network is given the sample and the enlarged image, and so has twice as many input channels.

    Raises:
        InputError: sizes that are not given, or that do not fit the tensors.
    """
    takes, gives = layout.in_channels, layout.out_channels
    # Without an image to enlarge it gives C or 2C channels. The scripts know images of 3 channels alone.
    sizes = {"large_size", "small_size"} & set(flags.values)
    enlarges = bool(sizes) or takes == 2 * 3 or gives not in (takes, 2 * takes)
    channels = takes // 2 if enlarges else takes
    if channels * (2 if enlarges else 1) != takes or gives not in (channels, 2 * channels):
        raise InputError(
            f"{path}: has {takes} input and {gives} output channels, expected C and C or 2C (with --image_size), or "
            "for super-resolution 2C and C or 2C (with --large_size and --small_size)"
        )
    if not enlarges:
        flags.require(path, "image_size", hint=HINT)
        return Images(channels, _checked_size(path, "image_size", layout, flags), None, gives == 2 * channels)
    if "image_size" in flags.values:
        raise InputError(
            f"{path}: enlarges images (it has {takes} input and {gives} output channels); give --large_size and "
            "--small_size instead of --image_size"
        )
    flags.require(path, "large_size", "small_size", hint=HINT)
    size, small_size = _checked_size(path, "large_size", layout, flags), flags.get("small_size")
    if not 1 <= small_size <= size:
        raise InputError(f"{path}: --small_size is {small_size}, expected 1 to {size}, the --large_size")
    return Images(channels, size, small_size, gives == 2 * channels)


def _checked_size(path: Path, name: str, layout: OpenAiLayout, flags: GivenFlags) -> int:
    size: int = flags.get(name)
    factor = 2 ** (len(layout.widths) - 1)
    if size < 1 or size % factor:
        raise InputError(
            f"{path}: {name} is {size}, expected a multiple of {factor}: the network halves it "
            f"{len(layout.widths) - 1} times"
        )
    # A U-Net runs at any size; the multipliers betray the one that it was trained at.
    meant = [known for known, choices in CHANNEL_MULTIPLIERS.items() if layout.multipliers in choices]
    if "channel_mult" not in flags.values and meant and size in CHANNEL_MULTIPLIERS and size not in meant:
        raise InputError(
            f"{path}: {name} is {size}, but its channel multipliers {_listed(layout.multipliers)} are those of "
            f"{' or '.join(map(str, sorted(meant)))}; correct --{name}, or give --channel_mult if both are right"
        )
    return size


def check_layout_flags(path: Path, layout: OpenAiLayout, images: Images, flags: GivenFlags) -> None:
    """Raises InputError if a flag says of the network what its tensors contradict."""
    facts: dict[str, tuple[Any, str]] = {
        "learn_sigma": (images.learn_sigma, "out.2.weight"),
        "class_cond": (layout.num_classes is not None, "label_emb.weight"),
        "num_channels": (layout.model_channels, "time_embed.0.weight"),
        "num_res_blocks": (layout.num_res_blocks, "output_blocks"),
        "use_scale_shift_norm": (layout.scale_shift, "input_blocks.1.0.emb_layers.1.weight"),
        "resblock_updown": (layout.updown, "input_blocks"),
    }
    for name, (fact, where) in facts.items():
        if name in flags.values and flags.get(name) != fact:
            raise InputError(
                f"{path}: --{name} is {flags.get(name)} ({flags.origin(name)}), but {where} says {fact}; correct it or "
                "leave it out, as the tensors tell it"
            )
    multipliers = _numbers("channel_mult", flags)
    if multipliers and tuple(multipliers) != layout.multipliers:
        raise InputError(
            f"{path}: --channel_mult is {_listed(multipliers)}, but the widths of the convolutions say "
            f"{_listed(layout.multipliers)}; correct it or leave it out"
        )
    resolutions = _numbers("attention_resolutions", flags)
    if resolutions:
        # As the scripts compute it: the image's size over the resolution, by whole numbers.
        size = images.size
        factors = {size // int(each) for each in resolutions if int(each) > 0}
        wanted = tuple(2**level in factors for level in range(len(layout.widths)))
        if wanted != layout.attention:
            found = [size // 2**level for level, attends in enumerate(layout.attention) if attends]
            raise InputError(
                f"{path}: --attention_resolutions is {flags.get('attention_resolutions')}, but at image_size {size} "
                f"the tensors have attention at {_listed(found) or 'none'}; correct one of the two"
            )


def _numbers(name: str, flags: GivenFlags) -> list[float]:
    text = flags.get(name, "")
    try:
        numbers = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"--{name} is {text!r}, expected numbers with commas between them")
    return numbers


def _listed(numbers: Iterable[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
