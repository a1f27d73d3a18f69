"""A process to and from the two config files of a diffusers pipeline folder: scheduler and UNet.

What our sampler cannot reproduce is refused with the reason, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion.diffusers_fields import check_scheduler_fields, check_unet_fields
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.number_checks import shown
from diffusion.process import Process, SampleShape

# diffusers computes fixed_small_log as the same β̃, by way of a logarithm.
_VARIANCE_TYPES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "learned_range": "learned_range",
}
# What diffusers' schedulers take where their configuration names no spacing, and the ones they know.
DEFAULT_DIFFUSERS_SPACING, DIFFUSERS_SPACINGS = "leading", ("leading", "trailing", "linspace")
_REFUSED_VARIANCES = {
    "fixed_large_log": "diffusers uses ln(beta) as if it were a standard deviation there",
    "learned": "an unbounded learned variance is not supported",
}


def schedule_from_diffusers(config: Mapping[str, Any], source: str = "scheduler_config.json") -> NoiseSchedule:
    """The noise schedule that a diffusers scheduler config describes, with diffusers' defaults.

    Raises:
        InputError: an unknown β schedule, or impossible values.
    """
    check_scheduler_fields(config, source)
    try:
        if config.get("trained_betas") is not None:
            betas, total = config["trained_betas"], config.get("num_train_timesteps", 1000)
            if len(betas) != total:
                # diffusers would choose timesteps of `total` and take their betas from the list.
                raise InputError(
                    f"trained_betas holds {len(betas)} numbers, but num_train_timesteps is {total}; "
                    "expected one for each"
                )
            schedule = NoiseSchedule.explicit(betas)
        else:
            kind = config.get("beta_schedule", "linear")
            if kind == "explicit":
                raise InputError("beta_schedule is 'explicit', which needs trained_betas")
            schedule = NoiseSchedule.make(
                kind,
                config.get("num_train_timesteps", 1000),
                config.get("beta_start"),
                config.get("beta_end"),
            )
        if config.get("rescale_betas_zero_snr"):
            schedule = schedule.with_zero_terminal_snr()
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    return schedule


def process_from_diffusers(
    scheduler: Mapping[str, Any],
    unet: Mapping[str, Any],
    levels: int = 256,
    checkpoint_sha256: str | None = None,
    source: str = "scheduler_config.json",
    unet_source: str = "unet/config.json",
) -> Process:
    """The process of a diffusers `DDPMPipeline`.

    Args:
        scheduler: the parsed scheduler_config.json.
        unet: the parsed unet/config.json.
        levels: gray levels of the data; the configs do not say.
        checkpoint_sha256: of the weights file.
        source: what to call the scheduler's config in an error.
        unet_source: the same of the network's.

    Raises:
        InputError: a value of a wrong type, or a setting that would change the samples and that we do not reproduce.
    """
    check_scheduler_fields(scheduler, source)
    check_unet_fields(unet, unet_source)
    variance_type = scheduler.get("variance_type", "fixed_small")
    if variance_type in _REFUSED_VARIANCES:
        raise InputError(
            f"{source}: variance_type is {shown(variance_type)} ({_REFUSED_VARIANCES[variance_type]}); "
            f"expected one of {', '.join(_VARIANCE_TYPES)}"
        )
    if variance_type not in _VARIANCE_TYPES:
        raise InputError(
            f"{source}: variance_type is {shown(variance_type)}, expected one of {', '.join(_VARIANCE_TYPES)}"
        )
    if scheduler.get("thresholding"):
        raise InputError(f"{source}: thresholding is true, expected false: dynamic thresholding is not reproduced")
    if scheduler.get("steps_offset"):
        raise InputError(f"{source}: steps_offset is {scheduler['steps_offset']!r}, expected 0: it is not reproduced")
    if not scheduler.get("set_alpha_to_one", True):
        raise InputError(
            f"{source}: set_alpha_to_one is false, expected true: our chains end at data, where alpha_bar is 1"
        )
    size = unet.get("sample_size")
    if size is None:
        raise InputError(f"{unet_source}: sample_size is missing, expected a number or [height, width]")
    height, width = (size, size) if isinstance(size, int) else size
    channels, emitted = unet.get("in_channels", 3), unet.get("out_channels", 3)
    schedule = schedule_from_diffusers(scheduler, source)
    try:
        process = Process(
            sample=SampleShape(channels, height, width, levels),
            schedule=schedule,
            prediction_type=scheduler.get("prediction_type", "epsilon"),
            variance_type=_VARIANCE_TYPES[variance_type],
            clip_sample=float(scheduler.get("clip_sample_range", 1.0)) if scheduler.get("clip_sample", True) else None,
            checkpoint_sha256=checkpoint_sha256,
            timestep_spacing=scheduler.get("timestep_spacing", DEFAULT_DIFFUSERS_SPACING),
        )
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    if emitted != process.prediction_channels:
        raise InputError(
            f"{unet_source}: out_channels is {emitted}, expected {process.prediction_channels} "
            f"for in_channels {channels} with variance_type {variance_type}"
        )
    return process


def process_to_diffusers(process: Process) -> dict[str, Any]:
    """The keyword arguments of diffusers' `DDPMScheduler` that describe `process`."""
    schedule = process.schedule
    arguments: dict[str, Any] = {
        "num_train_timesteps": schedule.num_train_timesteps,
        "prediction_type": process.prediction_type,
        "variance_type": process.variance_type,
        "clip_sample": process.clip_sample is not None,
    }
    if process.clip_sample is not None:
        arguments["clip_sample_range"] = process.clip_sample
    if process.timestep_spacing in DIFFUSERS_SPACINGS:
        arguments["timestep_spacing"] = process.timestep_spacing
    if schedule.kind == "explicit":
        return arguments | {"trained_betas": schedule.betas.tolist()}
    arguments["beta_schedule"] = schedule.kind
    if schedule.beta_start is not None:
        arguments |= {"beta_start": schedule.beta_start, "beta_end": schedule.beta_end}
    return arguments
