"""Ho et al. 2020 and DDIM (Song et al. 2021) in PyTorch: a state dict, or the list that DDIM's training saves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion.errors import InputError
from diffusion.noise_schedule import MAX_TRAIN_TIMESTEPS, NoiseSchedule
from diffusion.process import Process, SampleShape
from export.checkpoints.flags import EMA, IMAGE_SIZE, NUM_RES_BLOCKS, CheckpointFlag, GivenFlags
from export.checkpoints.formats import Format

if TYPE_CHECKING:
    from export.checkpoints.checkpoint import ForeignCheckpoint
    from export.checkpoints.ho_layout import HoLayout
    from export.checkpoints.state_file import StateFile

_NAME = "Ho et al. 2020 or DDIM"
_VARIANCES = {"fixedsmall": "fixed_small", "fixedlarge": "fixed_large"}
_FLAGS = (
    IMAGE_SIZE,
    CheckpointFlag(
        "beta_schedule", str, "of the configuration's diffusion", ("linear", "quad", "const", "jsd", "sigmoid")
    ),
    CheckpointFlag("beta_start", float, "likewise"),
    CheckpointFlag("beta_end", float, "likewise"),
    CheckpointFlag("num_diffusion_timesteps", int, "T"),
    CheckpointFlag("var_type", str, "of the chain", tuple(_VARIANCES)),
    EMA,
    CheckpointFlag("ch", int, "width that ch_mult multiplies: checked against the tensors, as are those below"),
    CheckpointFlag("ch_mult", str, "such as 1,2,2,2"),
    NUM_RES_BLOCKS,
)


def _published(size: int, var_type: str, ch_mult: str) -> dict[str, Any]:
    return {
        "image_size": size,
        "beta_schedule": "linear",
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "num_diffusion_timesteps": 1000,
        "var_type": var_type,
        "ch": 128,
        "ch_mult": ch_mult,
        "num_res_blocks": 2,
    }


HO_MODELS = {
    # Ho et al.'s weights as pytorch_diffusion published them, with and without moving average.
    "ddpm-cifar10": _published(32, "fixedlarge", "1,2,2,2"),
    "ddpm-lsun-bedroom": _published(256, "fixedsmall", "1,1,2,2,4,4"),
    "ddpm-lsun-cat": _published(256, "fixedsmall", "1,1,2,2,4,4"),
    "ddpm-lsun-church": _published(256, "fixedsmall", "1,1,2,2,4,4"),
    # DDIM's own.
    "ddim-celeba": _published(64, "fixedlarge", "1,2,2,2,4"),
}
_HINT = f", or name a published model: --model {', '.join(HO_MODELS)}"
_MARKS = {"temb.dense.0.weight", "conv_in.weight", "mid.attn_1.q.weight", "norm_out.weight"}


def _recognizes(state: StateFile) -> bool:
    return _network_table(state, True) is not None


def _network_table(state: StateFile, average: bool) -> tuple[dict[str, Any], str] | None:
    """The network's tensors, and what they are. DDIM saves [network, optimizer, epoch, step, moving average]."""
    whole = (state.table(), "")
    listed = [(state.table(4), "the moving average (part 4 of the list)"), (state.table(0), "part 0 of the list")]
    for table, what in (whole, *(listed if average else listed[1:])):
        if table:
            # DataParallel puts this before every name.
            tensors = {name.removeprefix("module."): tensor for name, tensor in table.items()}
            if tensors.keys() >= _MARKS:
                return tensors, what
    return None


def _read(state: StateFile, flags: GivenFlags) -> ForeignCheckpoint:
    from export.checkpoints.checkpoint import ForeignCheckpoint
    from export.checkpoints.ho_layout import read_ho_layout
    from export.checkpoints.tensors import checked_tensors
    from runtime.engines.torch_checkpoint import Network

    path, found = state.path, _network_table(state, bool(flags.get("ema", True)))
    if found is None:
        raise InputError(f"{path}: holds a moving average alone, but --ema is False; leave it out")
    tensors, what = found
    tensors.pop("logvar", None)  # of `type: bayesian`, which its forward pass does not use
    layout = read_ho_layout(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    _check_layout_flags(state, layout, flags)
    process = _process(state, layout, flags)
    image_size = process.sample.height
    expected = {place.name: place.shape for place in layout.places()}
    weights = checked_tensors(
        path, tensors, expected, "the file is damaged, or of another network than the two projects make"
    )
    return ForeignCheckpoint(
        path,
        _NAME,
        process,
        Network(layout.make_unet(image_size, weights)),
        {
            "prediction_type": "the only one of the project",
            "schedule": flags.origin("beta_schedule"),
            "variance_type": flags.origin("var_type"),
            "clip_sample": "default of the project",
        },
        layout.unet_arguments(image_size),
        notes=(f"{path}: reading {what}",) if what else (),
    )


def _process(state: StateFile, layout: HoLayout, flags: GivenFlags) -> Process:
    path = state.path
    flags.require(
        path, "image_size", "beta_schedule", "beta_start", "beta_end", "num_diffusion_timesteps", "var_type", hint=_HINT
    )
    size, factor = flags.get("image_size"), 2 ** (len(layout.widths) - 1)
    if size < 1 or size % factor:
        raise InputError(
            f"{path}: image_size is {size}, expected a multiple of {factor}: the network halves it "
            f"{len(layout.widths) - 1} times; correct --image_size"
        )
    if layout.out_channels != layout.in_channels:
        raise InputError(
            f"{path}: has {layout.in_channels} input and {layout.out_channels} output channels, expected the same; "
            "choose a checkpoint whose network predicts eps"
        )
    total, start, end = (flags.get(name) for name in ("num_diffusion_timesteps", "beta_start", "beta_end"))
    if not 1 <= total <= MAX_TRAIN_TIMESTEPS:  # before an array of so many is made
        raise InputError(f"{path}: --num_diffusion_timesteps is {total}, expected 1 to {MAX_TRAIN_TIMESTEPS}")
    kind = flags.get("beta_schedule")
    if kind == "const":
        schedule = NoiseSchedule.explicit(np.full(total, end))
    elif kind == "jsd":  # 1/T, 1/(T−1), …, 1
        schedule = NoiseSchedule.explicit(1.0 / np.arange(total, 0, -1.0))
    else:
        schedule = NoiseSchedule.make({"quad": "scaled_linear"}.get(kind, kind), total, start, end)
    return Process(
        SampleShape(layout.in_channels, size, size),
        schedule,
        "epsilon",
        _VARIANCES[flags.get("var_type")],
        1.0,
        state.sha256,
        "leading",  # DDIM's `--skip_type uniform`
    )


def _check_layout_flags(state: StateFile, layout: HoLayout, flags: GivenFlags) -> None:
    """Raises InputError if a flag says of the network what its tensors contradict."""
    multipliers = ",".join(f"{width / layout.width:g}" for width in layout.widths)
    facts: dict[str, tuple[object, str]] = {
        "ch": (layout.width, "conv_in.weight"),
        "ch_mult": (multipliers, "down"),
        "num_res_blocks": (layout.num_res_blocks, "down.0.block"),
    }
    for name, (fact, where) in facts.items():
        if name in flags.values and flags.get(name) != fact:
            raise InputError(
                f"{state.path}: --{name} is {flags.get(name)} ({flags.origin(name)}), but {where} says {fact}; correct "
                "it or leave it out, as the tensors tell it"
            )


HO = Format(_NAME, _recognizes, _read, _FLAGS, HO_MODELS)
