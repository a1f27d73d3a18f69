"""Samplers: functions from a process and timesteps to a table. Adding one adds a file and a line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diffusion.errors import InputError
from diffusion.number_checks import real_number, shown, whole_number, yes_or_no
from diffusion.process import Process
from diffusion.samplers.ddim import ddim, ddim_inversion
from diffusion.samplers.ddpm import ddpm
from diffusion.samplers.deis import deis, deis_3
from diffusion.samplers.dpmpp import dpmpp_2m, dpmpp_sde_2m
from diffusion.samplers.exponential_integrator import extrapolation_note, half_log_snr
from diffusion.samplers.method import Method
from diffusion.samplers.unipc import unipc
from diffusion.samplers.user_table import check_user_table
from diffusion.spacing import DEFAULT_SPACING, check_timesteps, spaced_timesteps
from diffusion.step_table import StepTable, start_note

__all__ = ["DEFAULT_SAMPLER", "SAMPLERS", "Method", "check_invertible", "chosen_spacing", "make_table"]

SAMPLERS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(ddpm, order=1, histories=0, stochastic=True),
        Method(ddim, order=1, histories=0, stochastic=False, inverse=ddim_inversion),
        Method(dpmpp_2m, order=2, histories=1, stochastic=False),
        Method(dpmpp_sde_2m, order=2, histories=1, stochastic=True),
        Method(deis, order=2, histories=1, stochastic=False),
        Method(deis_3, order=3, histories=2, stochastic=False),
        Method(unipc, order=2, histories=2, stochastic=False),
    )
}
DEFAULT_SAMPLER = "ddpm"
# As users name them, in errors; options are named alike.
_NAMES = {"num_steps": "steps", "from_timestep": "from-timestep", "lambda_min": "lambda-min"}


def make_table(
    process: Process,
    sampler: str | StepTable | None = None,
    num_steps: int | None = None,
    spacing: str | None = None,
    timesteps: Sequence[int] | np.ndarray | None = None,
    from_timestep: int | None = None,
    lambda_min: float | None = None,
    invert: bool = False,
    force: bool = False,
    **options: float | bool | None,
) -> StepTable:
    """The table of a chain.

    Args:
        process: what the network was trained on.
        sampler: one of `SAMPLERS`, or a table of one's own; None for `DEFAULT_SAMPLER`, or where `invert` is given for
            the one that has an inverse.
        num_steps: network calls; None for every timestep there is.
        spacing: how `num_steps` timesteps are chosen, one of `diffusion.spacing.SPACINGS`; None for that of the
            process, or `DEFAULT_SPACING` where it has none.
        timesteps: an explicit, strictly descending choice instead of `num_steps` and `spacing`.
        from_timestep: where the chain begins, T−1 unless said: `num_steps` are spaced over 0..from_timestep.
        lambda_min: leaves out the timesteps with λ = ½ ln(ᾱ/(1−ᾱ)) below it, the noisiest, before spacing;
            −5.1 is what Lu et al. 2022 (DPM-Solver) advise for the cosine schedule.
        invert: run the sampler's rows upwards, from data to the noise that it would make them from.
        force: run a table of one's own that was fitted to another checkpoint.
        options: of the sampler, such as `eta` and `use_clipped_model_output` of `ddim`; None for its default.

    Raises:
        InputError: an unknown name, an option that the sampler does not have, timesteps that are repeated, rising,
            outside 0..T−1 or too many, a table that the process cannot run, or a sampler that has no inverse.
    """
    given = {name: value for name, value in options.items() if value is not None}
    invert = yes_or_no(invert, "invert")
    if isinstance(sampler, StepTable):
        chosen: dict[str, object] = {"num_steps": num_steps, "timesteps": timesteps, "from_timestep": from_timestep}
        chosen |= {"lambda_min": lambda_min, "invert": invert or None, **given}
        extra = [_NAMES.get(name, name) for name, value in chosen.items() if value is not None]
        if spacing is not None:
            extra.append("spacing")
        if extra:
            raise InputError(f"{extra[0]} was given with a table of one's own, whose rows are chosen already")
        return check_user_table(sampler, process, force)
    if invert:
        inverse = check_invertible(sampler, **options)
        chain, notes = _chain_timesteps(process, num_steps, spacing, timesteps, from_timestep, lambda_min)
        return inverse(process, chain).with_notes(*notes)
    method = _method(DEFAULT_SAMPLER if sampler is None else sampler)
    chain, notes = _chain_timesteps(process, num_steps, spacing, timesteps, from_timestep, lambda_min)
    alpha_bar = process.schedule.alpha_bar
    of_start = start_note(alpha_bar, int(chain[0]))
    of_steps = extrapolation_note(alpha_bar[chain], chain) if method.histories else None
    notes += [note for note in (of_start, of_steps) if note is not None]
    return method.table(process, chain, **given).with_notes(*notes)


def check_invertible(
    sampler: str | None = None, **options: float | bool | None
) -> Callable[[Process, np.ndarray], StepTable]:
    """The function that makes the rows of a sampler run upwards.

    Args:
        sampler: one of `SAMPLERS`; None for the one that can be inverted.
        options: of the sampler; an inversion has none: it adds no noise and takes eps from the clipped x_start.

    Raises:
        InputError: an unknown sampler, one that cannot be inverted, or an option other than its default.
    """
    invertible = [method for method in SAMPLERS.values() if method.inverse is not None]
    method = invertible[0] if sampler is None else _method(sampler)
    if method.inverse is None:
        names = ", ".join(candidate.name for candidate in invertible)
        raise InputError(f"sampler is {method.name}, which cannot be inverted; expected {names}")
    for name, value in options.items():
        if value is not None and value != method.options.get(name):
            reason = "adds no noise" if name == "eta" else "has no such choice"
            raise InputError(f"{name} is {value}, but an inversion {reason}; leave it out")
    return method.inverse


def _method(sampler: object) -> Method:
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise InputError(f"sampler is {shown(sampler)}, expected one of {', '.join(SAMPLERS)}, or a table's .json file")
    return SAMPLERS[sampler]


def _chain_timesteps(
    process: Process,
    num_steps: int | None,
    spacing: str | None,
    timesteps: Sequence[int] | np.ndarray | None,
    from_timestep: int | None,
    lambda_min: float | None,
) -> tuple[np.ndarray, list[str]]:
    """The timesteps that `make_table`'s arguments choose, int64 [R], strictly descending, and remarks on them."""
    schedule = process.schedule
    total = schedule.num_train_timesteps
    notes = []
    if timesteps is not None:
        if num_steps is not None:
            raise InputError("steps and timesteps were both given, expected one of them")
        if lambda_min is not None:
            raise InputError("lambda-min and timesteps were both given, expected one of them")
        if spacing is not None:
            raise InputError("spacing and timesteps were both given, expected one of them")
        chosen = check_timesteps(timesteps, total)
        if from_timestep is not None and chosen[0] != whole_number(from_timestep, "from-timestep"):
            raise InputError(f"timesteps begin at {chosen[0]}, but from-timestep is {from_timestep}; expected the same")
    else:
        spacing = chosen_spacing(process, spacing)
        reachable = total
        if from_timestep is not None:
            reachable = whole_number(from_timestep, "from-timestep", 0, total - 1) + 1
        if lambda_min is not None:
            above = _timesteps_above(lambda_min, schedule.alpha_bar)
            if from_timestep is not None and above < reachable:
                raise InputError(
                    f"from-timestep is {from_timestep}, but lambda-min {lambda_min} allows timesteps up to {above - 1}"
                )
            reachable = min(reachable, above)
        covered = schedule if reachable == total else schedule.truncated(reachable)
        chosen = spaced_timesteps(spacing, reachable if num_steps is None else num_steps, covered)
        if chosen[0] != reachable - 1:
            notes.append(
                f"{spacing} spacing begins at timestep {chosen[0]}, not at {reachable - 1}; trailing spacing reaches it"
            )
    return chosen, notes


def chosen_spacing(process: Process, spacing: str | None = None) -> str:
    """The spacing of a chain: what the user says, else what the checkpoint says, else `DEFAULT_SPACING`."""
    if spacing is not None:
        return spacing
    return DEFAULT_SPACING if process.timestep_spacing is None else process.timestep_spacing


def _timesteps_above(lambda_min: float, alpha_bar: np.ndarray) -> int:
    """How many timesteps, from 0 on, have λ of at least `lambda_min`."""
    lambda_min = real_number(lambda_min, "lambda-min")
    lambdas = half_log_snr(alpha_bar)
    count = int(np.count_nonzero(lambdas >= lambda_min))
    if count == 0:
        raise InputError(f"lambda-min is {lambda_min}, expected at most {lambdas[0]:.3g}, that of timestep 0")
    return count
