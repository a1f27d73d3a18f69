"""What the fields of diffusers' configuration files may hold: one table for the scheduler's, one for the network's.

diffusers checks almost none of them: a string is true, a list becomes a schedule of another length, `null` an error
many calls later. A value of another type is refused here, before anything is made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from diffusion.errors import InputError
from diffusion.noise_schedule import MAX_TRAIN_TIMESTEPS
from diffusion.number_checks import is_finite_number, is_whole, shown

# Far above any network there is, and far below what would keep a machine busy for hours before it fails.
_MAX_SIDE, _MAX_CHANNELS, _MAX_LAYERS, _MAX_BLOCKS = 2**16, 2**20, 256, 64


class _Kind(NamedTuple):
    accepts: Callable[[object], bool]
    words: str


def _whole(lowest: int, highest: int) -> _Kind:
    return _Kind(
        lambda value: is_whole(value) and lowest <= value <= highest, f"a whole number from {lowest} to {highest}"
    )


def _number(lowest: float = -math.inf, highest: float = math.inf) -> _Kind:
    words = "a number"
    if highest < math.inf:
        words += f" from {lowest:g} to {highest:g}"
    elif lowest > -math.inf:
        words += f" of at least {lowest:g}"
    return _Kind(lambda value: is_finite_number(value) and lowest <= float(value) <= highest, words)


def _or_null(kind: _Kind) -> _Kind:
    return _Kind(lambda value: value is None or kind.accepts(value), f"{kind.words} or null")


def _one_of(*names: str) -> _Kind:
    return _Kind(lambda value: isinstance(value, str) and value in names, f"one of {', '.join(names)}")


def _list_of(kind: _Kind, longest: int, words: str) -> _Kind:
    def accepts(value: object) -> bool:
        return isinstance(value, list | tuple) and 1 <= len(value) <= longest and all(map(kind.accepts, value))

    return _Kind(accepts, words)


_FLAG = _Kind(lambda value: isinstance(value, bool), "true or false")
_TEXT = _Kind(lambda value: isinstance(value, str), "a string")
_SIDE = _whole(1, _MAX_SIDE)
_WIDTH = _whole(1, _MAX_CHANNELS)
_NAMES = _list_of(_TEXT, _MAX_BLOCKS, "a list of strings")
_PAIR = _Kind(
    lambda value: isinstance(value, list | tuple) and len(value) == 2 and all(map(_SIDE.accepts, value)), "[H, W]"
)

# The arguments of diffusers' schedulers that say something of the process.
_SCHEDULER: dict[str, _Kind] = {
    "num_train_timesteps": _whole(1, MAX_TRAIN_TIMESTEPS),
    "beta_start": _number(),
    "beta_end": _number(),
    "beta_schedule": _TEXT,
    "trained_betas": _or_null(_list_of(_number(), MAX_TRAIN_TIMESTEPS, "a list of numbers")),
    "variance_type": _or_null(_TEXT),
    "clip_sample": _FLAG,
    "clip_sample_range": _number(),
    "prediction_type": _TEXT,
    "thresholding": _FLAG,
    "dynamic_thresholding_ratio": _number(),
    "sample_max_value": _number(),
    "timestep_spacing": _one_of("leading", "trailing", "linspace"),
    "steps_offset": _whole(-MAX_TRAIN_TIMESTEPS, MAX_TRAIN_TIMESTEPS),
    "rescale_betas_zero_snr": _FLAG,
    "set_alpha_to_one": _FLAG,
    "use_flow_sigmas": _or_null(_FLAG),
    "timestep_type": _TEXT,
    "predict_epsilon": _or_null(_FLAG),
}
# The arguments of diffusers' UNet2DModel; those of class-conditional networks are refused elsewhere.
_UNET: dict[str, _Kind] = {
    "sample_size": _Kind(
        lambda value: _SIDE.accepts(value) or _PAIR.accepts(value), f"{_SIDE.words} or [height, width]"
    ),
    "in_channels": _whole(1, _MAX_SIDE),
    "out_channels": _whole(1, _MAX_SIDE),
    "center_input_sample": _FLAG,
    "time_embedding_type": _TEXT,
    "time_embedding_dim": _or_null(_WIDTH),
    "freq_shift": _number(),
    "flip_sin_to_cos": _FLAG,
    "down_block_types": _NAMES,
    "mid_block_type": _or_null(_one_of("UNetMidBlock2D")),
    "up_block_types": _NAMES,
    "block_out_channels": _list_of(_WIDTH, _MAX_BLOCKS, "a list of whole numbers"),
    "layers_per_block": _whole(1, _MAX_LAYERS),
    "mid_block_scale_factor": _number(),
    "downsample_padding": _whole(0, _MAX_SIDE),
    "downsample_type": _or_null(_TEXT),
    "upsample_type": _or_null(_TEXT),
    "dropout": _number(0, 1),
    "act_fn": _TEXT,
    "attention_head_dim": _or_null(_WIDTH),
    "norm_num_groups": _or_null(_WIDTH),
    "attn_norm_num_groups": _or_null(_WIDTH),
    "norm_eps": _number(0),
    "resnet_time_scale_shift": _TEXT,
    "add_attention": _FLAG,
    "num_train_timesteps": _or_null(_whole(1, MAX_TRAIN_TIMESTEPS)),
    "quantization_config": _Kind(lambda value: value is None, "null: quantized weights are not read"),
}


def effective_fields(fields: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The fields that diffusers goes by: without those that `_use_default_values` names, which it passes over.

    Raises:
        InputError: `_use_default_values` is no list.
    """
    passed_over = fields.get("_use_default_values", [])
    if not isinstance(passed_over, list) or not all(isinstance(name, str) for name in passed_over):
        raise InputError(
            f"{source}: _use_default_values is {shown(passed_over)}, expected a list of fields; correct the file"
        )
    return {name: value for name, value in fields.items() if name not in ("_use_default_values", *passed_over)}


def check_scheduler_fields(fields: Mapping[str, Any], source: str) -> None:
    """Check scheduler_config.json. Raises InputError naming `source`, the field, what it holds and what it may hold."""
    _check(fields, _SCHEDULER, source)


def check_unet_fields(fields: Mapping[str, Any], source: str) -> None:
    """Check unet/config.json. Raises InputError as `check_scheduler_fields`."""
    _check(fields, _UNET, source)


def _check(fields: Mapping[str, Any], kinds: Mapping[str, _Kind], source: str) -> None:
    for name, kind in kinds.items():
        if name in fields and not kind.accepts(fields[name]):
            raise InputError(f"{source}: {name} is {shown(fields[name])}, expected {kind.words}; correct the file")
