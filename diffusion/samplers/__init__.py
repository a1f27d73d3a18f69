"""Samplers: functions from a process and timesteps to a table. Adding one adds a file and a line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diffusion.errors import InputError
from diffusion.process import Process
from diffusion.samplers.ddpm import ddpm
from diffusion.spacing import DEFAULT_SPACING, check_timesteps, spaced_timesteps
from diffusion.step_table import MAX_FIRST_ALPHA_BAR, StepTable

SAMPLERS: dict[str, Callable[[Process, np.ndarray], StepTable]] = {"ddpm": ddpm}
DEFAULT_SAMPLER = "ddpm"


def make_table(
    process: Process,
    sampler: str = DEFAULT_SAMPLER,
    num_steps: int | None = None,
    spacing: str = DEFAULT_SPACING,
    timesteps: Sequence[int] | np.ndarray | None = None,
    from_timestep: int | None = None,
) -> StepTable:
    """The table of a chain.

    Args:
        process: what the network was trained on.
        sampler: one of `SAMPLERS`.
        num_steps: network calls; None for every timestep there is.
        spacing: how `num_steps` timesteps are chosen, one of `diffusion.spacing.SPACINGS`.
        timesteps: an explicit, strictly descending choice instead of `num_steps` and `spacing`.
        from_timestep: where the chain begins, T−1 unless said: `num_steps` are spaced over 0..from_timestep.

    Raises:
        InputError: an unknown name, or timesteps that are repeated, rising, outside 0..T−1 or too many.
    """
    if sampler not in SAMPLERS:
        raise InputError(f"sampler is {sampler!r}, expected one of {', '.join(SAMPLERS)}")
    total = process.schedule.num_train_timesteps
    notes = []
    if timesteps is not None:
        if num_steps is not None:
            raise InputError("steps and timesteps were both given, expected one of them")
        chosen = check_timesteps(timesteps, total)
        if from_timestep is not None and chosen[0] != from_timestep:
            raise InputError(f"timesteps begin at {chosen[0]}, but from-timestep is {from_timestep}; expected the same")
    else:
        covered = process.schedule
        if from_timestep is not None:
            (start,) = check_timesteps([from_timestep], total)
            covered = covered.truncated(int(start) + 1)
        reachable = covered.num_train_timesteps
        chosen = spaced_timesteps(spacing, reachable if num_steps is None else num_steps, covered)
        if chosen[0] != reachable - 1:
            notes.append(
                f"{spacing} spacing begins at timestep {chosen[0]}, not at {reachable - 1}; trailing spacing reaches it"
            )
    if from_timestep is None and process.schedule.alpha_bar[chosen[0]] > MAX_FIRST_ALPHA_BAR:
        notes.append(
            f"the chain begins at timestep {chosen[0]} with alpha_bar {process.schedule.alpha_bar[chosen[0]]:.3g}: "
            "pure noise is not what the network saw there"
        )
    return SAMPLERS[sampler](process, chosen).with_notes(*notes)
