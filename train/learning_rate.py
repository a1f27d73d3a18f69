"""The learning rate as a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable

from diffusion.errors import InputError
from train.presets import TrainingConfig


def _constant(progress: float) -> float:
    return 1.0


def _cosine(progress: float) -> float:
    # Half a cosine down to zero (Loshchilov & Hutter 2017, eq. 5, without restarts).
    return 0.5 * (1.0 + math.cos(math.pi * progress))


# From the fraction of the run that is done to the fraction of the learning rate.
DECAYS: dict[str, Callable[[float], float]] = {"constant": _constant, "cosine": _cosine}


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """The learning rate of update `step`, counted from 0: linear warm-up, then the decay.

    Raises:
        InputError: an unknown decay.
    """
    if config.learning_rate_decay not in DECAYS:
        raise InputError(f"learning_rate_decay is {config.learning_rate_decay!r}, expected one of {', '.join(DECAYS)}")
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warmup * DECAYS[config.learning_rate_decay](step / config.steps)
