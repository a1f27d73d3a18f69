"""The steps of the Gaussian chain as distributions, float64: the forward process, its posterior, the reverse process.

The table of `diffusion.samplers.ddpm` draws from p_θ(x_{t−1} | x_t); here its mean and variance are kept, for the
likelihood. The functions of the forward process broadcast: `timestep` is an integer or an integer array that broadcasts
with x.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.prediction import to_x_start
from diffusion.process import Process


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


class ReverseStep(NamedTuple):
    """p_θ(x_{t−1} | x_t) = N(mean, exp(log_variance) I), and the x_start behind the mean; float64 [N, C, H, W].

    `log_variance` is [N, 1, 1, 1] where the variance is fixed.
    """

    x_start: np.ndarray
    mean: np.ndarray
    log_variance: np.ndarray


def p_x_prev_given_x_t(process: Process, x_t: np.ndarray, timestep: np.ndarray, prediction: np.ndarray) -> ReverseStep:
    """The reverse step of every sample (Ho et al. 2020, eq. 1), its mean that of eq. 7 at the predicted x_start.

    x_start is clipped as the process says, as the sampler does.

    Args:
        process: what the network was trained to do.
        x_t: [N, C, H, W], what the network saw.
        timestep: integers [N], 0..T−1.
        prediction: [N, C, H, W], or [N, 2C, H, W] with learned_range.

    Raises:
        InputError: arrays of other shapes, or a timestep outside 0..T−1.
    """
    x_t, timestep = np.asarray(x_t, np.float64), per_sample(timestep, process.schedule, len(x_t))
    num, channels = x_t.shape[:2]
    expected = (num, channels * (2 if process.variance_type == "learned_range" else 1), *x_t.shape[2:])
    if prediction.shape != expected:
        raise InputError(
            f"prediction has shape {prediction.shape}, expected {expected} for variance_type {process.variance_type}"
        )
    prediction = np.asarray(prediction, np.float64)
    p, w = prediction[:, :channels], prediction[:, channels:]
    x_start = to_x_start(p, process.prediction_type, x_t, process.schedule.alpha_bar[timestep])
    if process.clip_sample is not None:
        x_start = np.clip(x_start, -process.clip_sample, process.clip_sample)
    mean = q_x_prev_given_x_t(process.schedule, x_start, x_t, timestep).mean
    return ReverseStep(x_start, mean, log_variance(process, timestep, w))


def log_variance(process: Process, timestep: np.ndarray, w: np.ndarray) -> np.ndarray:
    """ln σ_t² of the reverse step, broadcast from `timestep` and `w`.

    fixed_small is ln β̃, fixed_large ln β (Ho et al. 2020, section 3.2), learned_range the interpolation
    f·ln β + (1 − f)·ln β̃ with f = (w + 1)/2 (Nichol & Dhariwal 2021, eq. 15).

    At t = 0 there is no posterior variance to go by, β̃ being 0, and the sampler adds no noise: the variance matters to
    the likelihood alone. β̃ of index 1 stands for it, as in the code of Nichol & Dhariwal 2021, for `fixed_large` too:
    so the two fixed variances have the same decoder, and their bounds differ by what the chain does. β_0 would be
    about twice as large and the decoder blunter.

    Args:
        process: whose variance.
        timestep: integers.
        w: the prediction's last C channels, read only for learned_range.
    """
    log_small, log_large = log_variance_ends(process.schedule)
    if process.variance_type == "fixed_small":
        return log_small[timestep]
    if process.variance_type == "fixed_large":
        return np.where(timestep == 0, log_small[timestep], log_large[timestep])
    fraction = 0.5 * (w + 1.0)
    return fraction * log_large[timestep] + (1.0 - fraction) * log_small[timestep]


def log_variance_ends(schedule: NoiseSchedule) -> tuple[np.ndarray, np.ndarray]:
    """(ln β̃, ln β), float64 [T] each, the first with its index 1 in place of index 0 (β_0 where T = 1)."""
    variance = schedule.posterior_variance
    after_first = variance[1:2] if len(variance) > 1 else schedule.betas[:1]
    return np.log(np.concatenate([after_first, variance[1:]])), np.log(schedule.betas)


def per_sample(timestep: np.ndarray, schedule: NoiseSchedule, num: int) -> np.ndarray:
    """`timestep` as int64 [N, 1, 1, 1]. Raises InputError unless it is N whole numbers in 0..T−1."""
    given = np.asarray(timestep)
    if given.shape != (num,) or not np.issubdtype(given.dtype, np.integer):
        raise InputError(f"timestep is {given.dtype} of shape {given.shape}, expected {num} whole numbers")
    if num and not (given.min() >= 0 and given.max() < schedule.num_train_timesteps):
        raise InputError(
            f"timesteps lie in {given.min()}..{given.max()}, expected 0..{schedule.num_train_timesteps - 1}"
        )
    return given.astype(np.int64).reshape(-1, 1, 1, 1)
