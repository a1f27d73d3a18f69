"""OpenAI's improved-diffusion and guided-diffusion: a state dict, and the flags of its training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.conditions import FLOAT32, INT64, MAX_CLASSES, Condition
from diffusion.noise_schedule import NoiseSchedule
from diffusion.number_checks import whole_number
from diffusion.process import Process, SampleShape
from export.checkpoints.flags import GivenFlags
from export.checkpoints.formats import Format
from export.checkpoints.openai_flags import HINT, OPENAI_FLAGS, Images, check_layout_flags, images_of
from export.checkpoints.openai_layout import OpenAiLayout, read_layout
from export.checkpoints.openai_models import OPENAI_MODELS
from export.checkpoints.openai_respacing import respacing_flags

if TYPE_CHECKING:
    from export.checkpoints.checkpoint import ForeignCheckpoint
    from export.checkpoints.openai_unet import Heads
    from export.checkpoints.state_file import StateFile

_NAME = "OpenAI's improved- or guided-diffusion"


def _recognizes(state: StateFile) -> bool:
    return {"time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.1.qkv.weight"} <= _table(state).keys()


def _table(state: StateFile) -> dict[str, Any]:
    """The network's tensors; DataParallel puts `module.` before every name."""
    table = state.table() or {}
    prefix = "module."
    if table and all(name.startswith(prefix) for name in table):
        return {name.removeprefix(prefix): tensor for name, tensor in table.items()}
    return table


def _read(state: StateFile, flags: GivenFlags) -> ForeignCheckpoint:
    from export.checkpoints.checkpoint import ForeignCheckpoint
    from export.checkpoints.openai_unet import Heads, OpenAiNetwork, make_unet, unet_arguments, why_not_plain
    from export.checkpoints.tensors import checked_tensors

    path, tensors = state.path, _table(state)
    layout = read_layout(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    images = images_of(path, layout, flags)
    check_layout_flags(path, layout, images, flags)
    heads = _heads(path, layout, flags, Heads)
    process, origins = _process(state, layout, images, flags)
    expected = {place.name: place.shape for place in layout.places()}
    weights = checked_tensors(
        path, tensors, expected, "the file is damaged, or of another network than the two projects' scripts make"
    )
    total = process.schedule.num_train_timesteps
    scale = 1000.0 / total if flags.get("rescale_timesteps") else 1.0
    network = OpenAiNetwork(make_unet(layout, heads, images.size, weights), scale, images.small_size is not None)
    reason = why_not_plain(layout, heads)
    if scale != 1.0:
        reason = reason or "it was trained on t · 1000/T (--rescale_timesteps), which no diffusers scheduler passes on"
    if images.small_size is not None:
        reason = reason or "it is given an image to enlarge, which no DDPMPipeline passes on"
    return ForeignCheckpoint(
        path,
        _NAME,
        process,
        network,
        origins,
        None if reason else unet_arguments(layout, heads, images.size),
        reason,
        _notes(path, process, flags),
    )


def _notes(path: Path, process: Process, flags: GivenFlags) -> tuple[str, ...]:
    notes = []
    step = re.fullmatch(r"model(\d+)\.pt", path.name)
    averages = sorted(path.parent.glob(f"ema_*_{step[1]}.pt")) if step else []
    if averages:
        notes.append(f"{path}: is not averaged; {averages[0].name} beside it is, and usually draws better images")
    respacing = flags.get("timestep_respacing")
    if respacing:
        visited = respacing_flags(respacing, process.schedule)
        notes.append(f"--timestep_respacing {respacing} is of sampling: give `python -m runtime.sample` {visited}")
    return tuple(notes)


def _process(
    state: StateFile, layout: OpenAiLayout, images: Images, flags: GivenFlags
) -> tuple[Process, dict[str, str]]:
    """What the network was trained to do, and where each part of that was found."""
    flags.require(state.path, "noise_schedule", "diffusion_steps", hint=HINT)
    total = flags.get("diffusion_steps")
    if total != 1000:  # else it changes nothing
        flags.require(state.path, "rescale_timesteps", hint=HINT)
    if flags.get("noise_schedule") == "cosine":
        schedule = NoiseSchedule.make("squaredcos_cap_v2", total)
    else:
        # Nichol & Dhariwal 2021, section 3: Ho et al.'s linear β, scaled so that any T ends at the same noise.
        scale = 1000 / total if total > 0 else 0.0
        schedule = NoiseSchedule.make("linear", total, scale * 1e-4, scale * 0.02)
    fixed = "fixed_small" if flags.get("sigma_small") else "fixed_large"
    process = Process(
        SampleShape(images.channels, images.size, images.size),
        schedule,
        "sample" if flags.get("predict_xstart") else "epsilon",
        "learned_range" if images.learn_sigma else fixed,
        1.0,
        state.sha256,
        "linspace",  # as `--timestep_respacing N` chooses N timesteps
        _conditions(state.path, layout, images),
    )
    learned = f"{layout.out_channels} output channels"
    return process, {
        "prediction_type": flags.origin("predict_xstart"),
        "schedule": flags.origin("noise_schedule"),
        "variance_type": learned if images.learn_sigma else flags.origin("sigma_small"),
        "clip_sample": "default of the project",
    }


def _heads(path: Path, layout: OpenAiLayout, flags: GivenFlags, make: type[Heads]) -> Heads:
    head_channels = flags.get("num_head_channels", -1)
    if head_channels == -1:
        flags.require(path, "num_heads", hint=" (or --num_head_channels)" + HINT)
    num_heads = flags.get("num_heads", 1)
    upsample = flags.get("num_heads_upsample", -1)
    heads = make(
        num_heads,
        num_heads if upsample == -1 else upsample,
        None if head_channels == -1 else head_channels,
        bool(flags.get("use_new_attention_order")),
    )
    heads.check(path, layout)
    if max(heads.at(width, up) for width in layout.attention_widths for up in (False, True)) > 1:
        flags.require(
            path, "use_new_attention_order", hint=" (False for improved-diffusion, which has no such flag)" + HINT
        )
    return heads


def _conditions(path: Path, layout: OpenAiLayout, images: Images) -> tuple[Condition, ...]:
    """The labels, none of which is a null class, and the image to enlarge."""
    conditions = []
    if layout.num_classes is not None:
        num = whole_number(layout.num_classes, f"{path}: the classes of label_emb.weight", 1, MAX_CLASSES)
        conditions.append(Condition("y", INT64, classes=num))
    if images.small_size is not None:
        side = images.small_size
        conditions.append(Condition("low_res", FLOAT32, (images.channels, side, side)))
    return tuple(conditions)


OPENAI = Format(_NAME, _recognizes, _read, OPENAI_FLAGS, OPENAI_MODELS)
