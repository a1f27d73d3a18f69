"""A process to and from the two config files of a diffusers pipeline folder: scheduler and UNet.

What our sampler cannot reproduce is refused with the reason, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion.diffusers_fields import check_scheduler_fields, check_unet_fields
from diffusion.diffusers_schedulers import (
    DEFAULT_SCHEDULER,
    SCHEDULER_CLASSES,
    check_scheduler_meaning,
    scheduler_class,
)
from diffusion.errors import InputError, in_file
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
# The spacings that diffusers' schedulers know.
DIFFUSERS_SPACINGS = ("leading", "trailing", "linspace")
_REFUSED_VARIANCES = {
    "fixed_large_log": "diffusers uses ln(beta) as if it were a standard deviation there",
    "learned": "an unbounded learned variance is not supported",
}


def schedule_from_diffusers(config: Mapping[str, Any], source: str = "scheduler_config.json") -> NoiseSchedule:
    """The noise schedule that a diffusers scheduler config describes, with the defaults of its class.

    Raises:
        InputError: a class that describes no DDPM process, a β schedule that it does not know, or impossible values.
    """
    found = scheduler_class(config, source)
    check_scheduler_fields(config, source)
    total = config.get("num_train_timesteps", 1000)
    try:
        if config.get("trained_betas") is not None:
            betas = config["trained_betas"]
            if len(betas) != total:
                # diffusers would choose timesteps of `total` and take their betas from the list.
                raise InputError(
                    f"trained_betas holds {len(betas)} numbers, but num_train_timesteps is {total}; "
                    "expected one for each"
                )
            schedule = NoiseSchedule.explicit(betas)
        else:
            kind = config.get("beta_schedule", found.beta_kinds[0])
            if kind == "explicit":
                raise InputError("beta_schedule is 'explicit', which needs trained_betas")
            if kind not in found.beta_kinds:
                raise InputError(
                    f"beta_schedule is {shown(kind)}, expected one of {', '.join(found.beta_kinds)}, "
                    f"which {config.get('_class_name', DEFAULT_SCHEDULER)} knows"
                )
            start, end = config.get("beta_start", found.beta_start), config.get("beta_end", found.beta_end)
            schedule = NoiseSchedule.make(kind, total, start, end)
        if config.get("rescale_betas_zero_snr"):
            schedule = schedule.with_zero_terminal_snr()
    except InputError as error:
        raise in_file(source, error, "correct the file") from None
    return schedule


def process_from_diffusers(
    scheduler: Mapping[str, Any],
    unet: Mapping[str, Any],
    levels: int = 256,
    checkpoint_sha256: str | None = None,
    source: str = "scheduler_config.json",
    unet_source: str = "unet/config.json",
) -> Process:
    """The process of a diffusers `DDPMPipeline`, by the defaults of the scheduler's class.

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
    found = scheduler_class(scheduler, source)
    check_scheduler_fields(scheduler, source)
    check_unet_fields(unet, unet_source)
    check_scheduler_meaning(scheduler, found, source)
    variance_type = scheduler.get("variance_type") or "fixed_small"
    if variance_type in _REFUSED_VARIANCES:
        raise InputError(
            f"{source}: variance_type is {shown(variance_type)} ({_REFUSED_VARIANCES[variance_type]}); "
            f"expected one of {', '.join(_VARIANCE_TYPES)}"
        )
    if variance_type not in _VARIANCE_TYPES:
        raise InputError(
            f"{source}: variance_type is {shown(variance_type)}, expected one of {', '.join(_VARIANCE_TYPES)}"
        )
    sample = shape_from_diffusers(unet, unet_source, levels)
    schedule = schedule_from_diffusers(scheduler, source)
    # A configuration that came from another class keeps that one's clip, though its own class does not clip.
    clips = scheduler.get("clip_sample", found.clips)
    try:
        process = Process(
            sample=sample,
            schedule=schedule,
            prediction_type=scheduler.get("prediction_type", "epsilon"),
            variance_type=_VARIANCE_TYPES[variance_type],
            clip_sample=float(scheduler.get("clip_sample_range", 1.0)) if clips else None,
            checkpoint_sha256=checkpoint_sha256,
            timestep_spacing=scheduler.get("timestep_spacing", found.timestep_spacing),
        )
    except InputError as error:
        raise in_file(source, error, "correct the file") from None
    check_prediction_channels(unet, process, unet_source)
    return process


def shape_from_diffusers(unet: Mapping[str, Any], source: str = "unet/config.json", levels: int = 256) -> SampleShape:
    """The shape of one sample, by a network's config. Raises InputError where it does not say it."""
    check_unet_fields(unet, source)
    size = unet.get("sample_size")
    if size is None:
        raise InputError(f"{source}: sample_size is missing, expected a number or [height, width]")
    height, width = (size, size) if isinstance(size, int) else size
    return SampleShape(unet.get("in_channels", 3), height, width, levels)


def check_prediction_channels(unet: Mapping[str, Any], process: Process, source: str) -> None:
    """Raises InputError unless the network's config has as many output channels as the process needs."""
    emitted = unet.get("out_channels", 3)
    if emitted != process.prediction_channels:
        raise InputError(
            f"{source}: out_channels is {emitted}, expected {process.prediction_channels} "
            f"for in_channels {process.sample.channels} with variance_type {process.variance_type}"
        )


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
    if schedule.kind not in SCHEDULER_CLASSES[DEFAULT_SCHEDULER].beta_kinds:
        return arguments | {"trained_betas": schedule.betas.tolist()}
    arguments["beta_schedule"] = schedule.kind
    if schedule.beta_start is not None:
        arguments |= {"beta_start": schedule.beta_start, "beta_end": schedule.beta_end}
    return arguments
