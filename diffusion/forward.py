"""The forward process and its posterior: closed forms, in float64.

Every function broadcasts: `timestep` is an integer or an integer array that broadcasts with x.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffusion.noise_schedule import NoiseSchedule


class Gaussian(NamedTuple):
    """A Gaussian with independent elements."""

    mean: np.ndarray
    variance: np.ndarray


def q_x_t_given_x_start(schedule: NoiseSchedule, x_start: np.ndarray, timestep: int | np.ndarray) -> Gaussian:
    """q(x_t | x_0) = N(√ᾱ_t x_0, (1 − ᾱ_t) I) (Ho et al. 2020, eq. 4)."""
    alpha_bar = schedule.alpha_bar[timestep]
    return Gaussian(np.sqrt(alpha_bar) * x_start, 1.0 - alpha_bar)


def q_sample(schedule: NoiseSchedule, x_start: np.ndarray, timestep: int | np.ndarray, eps: np.ndarray) -> np.ndarray:
    """x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε: a draw of q(x_t | x_0) from a draw of ε ~ N(0, I) (Ho et al. 2020, eq. 4)."""
    mean, variance = q_x_t_given_x_start(schedule, x_start, timestep)
    return mean + np.sqrt(variance) * eps


def q_x_prev_given_x_t(
    schedule: NoiseSchedule, x_start: np.ndarray, x_t: np.ndarray, timestep: int | np.ndarray
) -> Gaussian:
    """q(x_{t−1} | x_t, x_0) (Ho et al. 2020, eqs. 6 and 7); at t = 0 it is x_start with variance 0."""
    alpha_bar, alpha_bar_prev = schedule.alpha_bar[timestep], schedule.alpha_bar_prev[timestep]
    alpha, beta = schedule.alphas[timestep], schedule.betas[timestep]
    mean = (np.sqrt(alpha_bar_prev) * beta * x_start + np.sqrt(alpha) * (1.0 - alpha_bar_prev) * x_t) / (
        1.0 - alpha_bar
    )
    return Gaussian(mean, schedule.posterior_variance[timestep])
