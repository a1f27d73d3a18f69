"""OpenAI's improved-diffusion and guided-diffusion: a state dict, and the flags of its training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from export.checkpoints.flags import IMAGE_SIZE, NUM_RES_BLOCKS, CheckpointFlag, GivenFlags
from export.checkpoints.formats import Format
from export.checkpoints.openai_layout import OpenAiLayout, read_layout
from export.checkpoints.openai_models import OPENAI_MODELS

if TYPE_CHECKING:
    from export.checkpoints.checkpoint import ForeignCheckpoint
    from export.checkpoints.openai_unet import Heads
    from export.checkpoints.state_file import StateFile

_NAME = "OpenAI's improved- or guided-diffusion"
_HINT = f", or name a published model: --model {', '.join(OPENAI_MODELS)}"
# The multipliers that the two projects' scripts choose by the size of the image.
_MULTIPLIERS: dict[int, tuple[tuple[float, ...], ...]] = {
    512: ((0.5, 1, 1, 2, 2, 4, 4), (1, 1, 2, 2, 4, 4)),  # the latter of super-resolution
    256: ((1, 1, 2, 2, 4, 4), (1, 1, 2, 2, 2, 2)),
    128: ((1, 1, 2, 3, 4), (1, 1, 2, 2, 2)),
    64: ((1, 2, 3, 4), (1, 2, 2, 2)),
    32: ((1, 2, 2, 2),),
}
# Everything that the projects' scripts take, so that a user can paste the flags of a README.
_FLAGS = (
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
    from export.checkpoints.openai_unet import Heads, RescaledTimesteps, make_unet, unet_arguments, why_not_plain
    from export.checkpoints.tensors import checked_tensors
    from runtime.engines.torch_checkpoint import Network

    path, tensors = state.path, _table(state)
    layout = read_layout(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    _check_layout_flags(path, layout, flags)
    _check_conditions(path, layout, flags)
    image_size = _image_size(path, layout, flags)
    heads = _heads(path, layout, flags, Heads)
    process, origins = _process(state, layout, flags, image_size)
    expected = {place.name: place.shape for place in layout.places()}
    weights = checked_tensors(
        path, tensors, expected, "the file is damaged, or of another network than the two projects' scripts make"
    )
    network = Network(make_unet(layout, heads, image_size, weights))
    rescaled = process.schedule.num_train_timesteps != 1000 and bool(flags.get("rescale_timesteps"))
    reason = why_not_plain(layout, heads)
    if rescaled:
        reason = reason or "it was trained on t · 1000/T (--rescale_timesteps), which no diffusers scheduler passes on"
    return ForeignCheckpoint(
        path,
        _NAME,
        process,
        RescaledTimesteps(network, process.schedule.num_train_timesteps) if rescaled else network,
        origins,
        None if reason else unet_arguments(layout, heads, image_size),
        reason,
    )


def _process(
    state: StateFile, layout: OpenAiLayout, flags: GivenFlags, image_size: int
) -> tuple[Process, dict[str, str]]:
    """What the network was trained to do, and where each part of that was found."""
    flags.require(state.path, "noise_schedule", "diffusion_steps", hint=_HINT)
    total = flags.get("diffusion_steps")
    if total != 1000:  # else it changes nothing
        flags.require(state.path, "rescale_timesteps", hint=_HINT)
    if flags.get("noise_schedule") == "cosine":
        schedule = NoiseSchedule.make("squaredcos_cap_v2", total)
    else:
        # Nichol & Dhariwal 2021, section 3: Ho et al.'s linear β, scaled so that any T ends at the same noise.
        scale = 1000 / total if total > 0 else 0.0
        schedule = NoiseSchedule.make("linear", total, scale * 1e-4, scale * 0.02)
    learned = layout.out_channels == 2 * layout.in_channels
    fixed = "fixed_small" if flags.get("sigma_small") else "fixed_large"
    process = Process(
        SampleShape(layout.in_channels, image_size, image_size),
        schedule,
        "sample" if flags.get("predict_xstart") else "epsilon",
        "learned_range" if learned else fixed,
        1.0,
        state.sha256,
        "linspace",  # as `--timestep_respacing N` chooses N timesteps
    )
    return process, {
        "prediction_type": flags.origin("predict_xstart"),
        "schedule": flags.origin("noise_schedule"),
        "variance_type": f"{layout.out_channels} output channels" if learned else flags.origin("sigma_small"),
        "clip_sample": "default of the project",
    }


def _image_size(path: Path, layout: OpenAiLayout, flags: GivenFlags) -> int:
    flags.require(path, "image_size", hint=_HINT)
    size: int = flags.get("image_size")
    factor = 2 ** (len(layout.widths) - 1)
    if size < 1 or size % factor:
        raise InputError(
            f"{path}: image_size is {size}, expected a multiple of {factor}: the network halves it "
            f"{len(layout.widths) - 1} times"
        )
    # A U-Net runs at any size; the multipliers betray the one that it was trained at.
    meant = [known for known, choices in _MULTIPLIERS.items() if layout.multipliers in choices]
    if "channel_mult" not in flags.values and meant and size in _MULTIPLIERS and size not in meant:
        raise InputError(
            f"{path}: image_size is {size}, but its channel multipliers {_listed(layout.multipliers)} are those of "
            f"{' or '.join(map(str, sorted(meant)))}; correct --image_size, or give --channel_mult if both are right"
        )
    return size


def _heads(path: Path, layout: OpenAiLayout, flags: GivenFlags, make: type[Heads]) -> Heads:
    head_channels = flags.get("num_head_channels", -1)
    if head_channels == -1:
        flags.require(path, "num_heads", hint=" (or --num_head_channels)" + _HINT)
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
            path, "use_new_attention_order", hint=" (False for improved-diffusion, which has no such flag)" + _HINT
        )
    return heads


def _check_layout_flags(path: Path, layout: OpenAiLayout, flags: GivenFlags) -> None:
    """Raises InputError if a flag says of the network what its tensors contradict."""
    size = flags.get("image_size", flags.get("large_size"))
    facts: dict[str, tuple[Any, str]] = {
        "learn_sigma": (
            layout.out_channels != layout.in_channels and layout.out_channels != layout.in_channels // 2,
            "out.2.weight",
        ),
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
    if resolutions and size is not None:
        # As the scripts compute it: the image's size over the resolution, by whole numbers.
        factors = {int(size) // int(each) for each in resolutions if int(each) > 0}
        wanted = tuple(2**level in factors for level in range(len(layout.widths)))
        if wanted != layout.attention:
            found = [size // 2**level for level, attends in enumerate(layout.attention) if attends]
            raise InputError(
                f"{path}: --attention_resolutions is {flags.get('attention_resolutions')}, but at image_size {size} "
                f"the tensors have attention at {_listed(found) or 'none'}; correct one of the two"
            )


def _check_conditions(path: Path, layout: OpenAiLayout, flags: GivenFlags) -> None:
    """Raises InputError for networks with further inputs."""
    if layout.num_classes is not None:
        raise InputError(
            f"{path}: is conditioned on {layout.num_classes} classes (label_emb.weight), expected an unconditional "
            "network: class labels are not supported yet; choose an unconditional checkpoint"
        )
    enlarges = "small_size" in flags.values or "large_size" in flags.values
    if (
        enlarges
        or layout.in_channels == 2 * 3
        or layout.out_channels
        not in (
            layout.in_channels,
            2 * layout.in_channels,
        )
    ):
        raise InputError(
            f"{path}: has {layout.in_channels} input and {layout.out_channels} output channels, as super-resolution "
            "has, expected an unconditional network: an image to enlarge is not supported yet; choose another one"
        )


def _numbers(name: str, flags: GivenFlags) -> list[float]:
    text = flags.get(name, "")
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise InputError(f"--{name} is {text!r}, expected numbers with commas between them") from None


def _listed(numbers: Iterable[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


OPENAI = Format(_NAME, _recognizes, _read, _FLAGS, OPENAI_MODELS)
