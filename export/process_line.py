"""What a network was trained to do, in one line that is printed before work starts: a wrong assumption is seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process
from runtime.formats.train_record import TRAIN_JSON
from runtime.process_flags import ProcessFlags

FACTS = ("prediction_type", "schedule", "variance_type", "clip_sample")


def process_line(process: Process, origins: Mapping[str, str]) -> str:
    """Prediction, schedule, variance and clip, each with its origin.

    Args:
        process: of the network.
        origins: where each of `FACTS` came from.
    """
    clip = "x_start not clipped" if process.clip_sample is None else f"x_start clipped to ±{process.clip_sample:g}"
    facts = (
        f"predicts {process.prediction_type}",
        f"noise {_schedule(process.schedule)}",
        f"variance {process.variance_type}",
        clip,
    )
    places = [origins[name] for name in FACTS]
    if len(set(places)) == 1:
        return f"{', '.join(facts)} (all from {places[0]})"
    return ", ".join(f"{fact} ({place})" for fact, place in zip(facts, places, strict=True))


def folder_origins(folder: Path) -> dict[str, str]:
    """Of a diffusers folder: the file that describes its process."""
    return dict.fromkeys(FACTS, TRAIN_JSON if (folder / TRAIN_JSON).exists() else "scheduler_config.json")


def onnx_origins(flags: ProcessFlags) -> dict[str, str]:
    """Of an ONNX file: the flags that were given, and for the rest its metadata."""
    given = {
        "prediction_type": flags.prediction_type and "--prediction-type",
        "schedule": flags.beta_schedule and "--beta-schedule",
        "variance_type": flags.variance_type and "--variance-type",
        "clip_sample": flags.clip_sample and "--clip-sample",
    }
    return {name: flag or "its metadata" for name, flag in given.items()}


def _schedule(schedule: NoiseSchedule) -> str:
    text = f"{schedule.kind}, T = {schedule.num_train_timesteps}"
    if schedule.beta_start is not None:
        text += f", beta {schedule.beta_start:g} to {schedule.beta_end:g}"
    return text
