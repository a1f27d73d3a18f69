"""Which timesteps a chain visits: five ways to choose N of T, and the check of any choice.

Timesteps are returned in the order the chain runs, downward. Ties round half to even.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.number_checks import shown, whole_number, whole_numbers


def _leading(num_steps: int, schedule: NoiseSchedule) -> np.ndarray:
    # As diffusers: reaches T−1 only for N = T.
    return np.arange(num_steps) * (schedule.num_train_timesteps // num_steps)


def _trailing(num_steps: int, schedule: NoiseSchedule) -> np.ndarray:
    # Lin et al. 2024, table 2: always begins at T−1. In diffusers' own arithmetic, whose rounding decides ties;
    # for some N it makes one timestep too many, −1.
    total = schedule.num_train_timesteps
    return np.round(np.arange(total, 0, -total / num_steps)[:num_steps])[::-1].astype(np.int64) - 1


def _linspace(num_steps: int, schedule: NoiseSchedule) -> np.ndarray:
    # In diffusers' own arithmetic, whose rounding decides ties.
    return np.round(np.linspace(0, schedule.num_train_timesteps - 1, num_steps)).astype(np.int64)


def _quadratic(num_steps: int, schedule: NoiseSchedule) -> np.ndarray:
    # Song et al. 2021 (DDIM), appendix D.2: more steps near the data.
    total = schedule.num_train_timesteps
    return pushed_apart(np.round((total - 1) * _unit_interval(num_steps) ** 2).astype(np.int64), total)


def _logsnr(num_steps: int, schedule: NoiseSchedule) -> np.ndarray:
    # Lu et al. 2022 (DPM-Solver): uniform in λ = ½ ln(ᾱ/(1−ᾱ)).
    lambdas = 0.5 * schedule.log_snr
    if not np.isfinite(lambdas[-1]):
        raise InputError(
            "spacing logsnr: the schedule ends at alpha_bar = 0, where log-SNR is infinite; expected another spacing"
        )
    wanted = lambdas[0] + _unit_interval(num_steps) * (lambdas[-1] - lambdas[0])
    return pushed_apart(_nearest(lambdas, wanted), schedule.num_train_timesteps)


_SPACINGS: dict[str, Callable[[int, NoiseSchedule], np.ndarray]] = {
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
    "quadratic": _quadratic,
    "logsnr": _logsnr,
}
SPACINGS = tuple(_SPACINGS)
DEFAULT_SPACING = "trailing"


def spaced_timesteps(spacing: str, num_steps: int, schedule: NoiseSchedule) -> np.ndarray:
    """N of the schedule's T timesteps, int64 [N], strictly descending.

    Raises:
        InputError: an unknown spacing, N < 1 or N > T.
    """
    total = schedule.num_train_timesteps
    if not isinstance(spacing, str) or spacing not in _SPACINGS:
        raise InputError(f"spacing is {shown(spacing)}, expected one of {', '.join(SPACINGS)}")
    try:
        num_steps = whole_number(num_steps, "steps", 1, total)
    except InputError as error:
        raise InputError(f"{error}, the timesteps of training") from None
    if num_steps == 1:
        return np.array([0 if spacing == "leading" else total - 1], dtype=np.int64)
    return check_timesteps(_SPACINGS[spacing](num_steps, schedule)[::-1], total)


def check_timesteps(timesteps: Sequence[int] | np.ndarray, num_train_timesteps: int) -> np.ndarray:
    """The same timesteps as int64 [N], if a chain can run through them.

    Raises:
        InputError: none at all, one that is not a whole number of 0..T−1, or an order that is not strictly descending.
    """
    whole = whole_numbers(timesteps)
    if whole is None or whole.ndim != 1 or not whole.size:
        raise InputError(f"timesteps: found {shown(timesteps)}, expected a non-empty list of whole numbers")
    for timestep in whole:
        if not 0 <= timestep < num_train_timesteps:
            raise InputError(f"timesteps: found {shown(timestep)}, expected 0 to {num_train_timesteps - 1}")
    array = whole.astype(np.int64)
    rising = np.flatnonzero(np.diff(array) >= 0)
    if rising.size:
        first, second = array[rising[0]], array[rising[0] + 1]
        raise InputError(f"timesteps: found {first} before {second}, expected a strictly descending list")
    return array


def _unit_interval(num_steps: int) -> np.ndarray:
    return np.arange(num_steps) / (num_steps - 1)


def _nearest(falling: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted number is nearest to one of a falling list, int64 [N]; the lowest place of those equally near.

    A search in a sorted list, O(T + N) of memory: T and N may be 10⁵ each.
    """
    rising = -falling
    below = np.minimum(np.searchsorted(rising, -wanted), len(falling) - 1)  # the first that is not above the wanted
    above = np.searchsorted(rising, rising[np.maximum(below - 1, 0)])  # the last that is, or the first of its equals
    return np.where(np.abs(falling[above] - wanted) <= np.abs(falling[below] - wanted), above, below)


def pushed_apart(rising: np.ndarray, total: int) -> np.ndarray:
    """Make a non-decreasing choice strictly increasing without leaving 0..T−1."""
    num_steps = len(rising)
    place = np.arange(num_steps)
    # t_k ← max(t_k, t_{k−1} + 1) for all k at once: subtract the place, take the running maximum, add it back.
    apart = np.maximum.accumulate(rising - place) + place
    return np.minimum(apart, total - num_steps + place)
