"""The variational bound, term by term: −ln p_θ(x_0) <= L_T + Σ L_{t−1} + L_0 (Ho et al. 2020, eq. 5; Luo 2022, eq. 58).

Every term is the closed form for one image and one draw of x_t ~ q(x_t | x_0), in nats per image, float64 [N]; its mean
over draws is the term. Timesteps count 0..T−1 as everywhere: index t stands for the papers' L_t with t counted from 0,
so index 0 is L_0, the decoder, and index T−1 is L_{T−1}. L_T, the prior's, has no timestep and no draw.
"""

from __future__ import annotations

import math

import numpy as np

from diffusion.discretized_decoder import log_probability_of_level
from diffusion.errors import InputError
from diffusion.gaussian import log_variance_ends, p_x_prev_given_x_t, per_sample
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process

# Below it the first terms of the series of eˡ − 1 − l are exact to rounding, and expm1(l) − l would cancel.
_SMALL = 1e-2


def gaussian_kl(squared_difference: np.ndarray, log_variance_q: np.ndarray, log_variance_p: np.ndarray) -> np.ndarray:
    """KL(q ‖ p) of two Gaussians, element by element, in nats.

    With l = ln(σ_q²/σ_p²) it is ½[eˡ − 1 − l + (μ_q − μ_p)²/σ_p²]. Logarithms of the variances keep it exact where they
    are tiny, and where they are nearly equal and 1 + l and eˡ would cancel.

    Args:
        squared_difference: (μ_q − μ_p)².
        log_variance_q, log_variance_p: broadcast with it.
    """
    log_ratio = np.asarray(log_variance_q, np.float64) - log_variance_p
    series = 0.5 * log_ratio**2 * (1 + log_ratio / 3 * (1 + log_ratio / 4 * (1 + log_ratio / 5 * (1 + log_ratio / 6))))
    of_variances = np.where(np.abs(log_ratio) < _SMALL, series, np.expm1(log_ratio) - log_ratio)
    return 0.5 * (of_variances + squared_difference * np.exp(-log_variance_p))


def prior_term(schedule: NoiseSchedule, x_start: np.ndarray) -> np.ndarray:
    """L_T = KL(q(x_T | x_0) ‖ N(0, I)), nats [N] (Ho et al. 2020, eq. 5): no network in it.

    Args:
        schedule: the noise schedule.
        x_start: [N, C, H, W].
    """
    alpha_bar = schedule.alpha_bar[-1]
    squared_mean = alpha_bar * np.asarray(x_start, np.float64) ** 2
    return _sum_per_sample(gaussian_kl(squared_mean, np.log1p(-alpha_bar), np.zeros(())))


def denoising_term(
    process: Process, x_start: np.ndarray, x_t: np.ndarray, timestep: np.ndarray, prediction: np.ndarray
) -> np.ndarray:
    """KL(q(x_{t−1} | x_t, x_0) ‖ p_θ(x_{t−1} | x_t)), nats [N]; its mean over x_t is L_{t−1} (Ho et al. 2020, eq. 5).

    Both means hold the same multiple of x_t, so their difference is √ᾱ_{t−1} β_t/(1 − ᾱ_t) · (x_0 − x̂_0)
    (Luo 2022, eq. 94) and is computed as that: the means themselves are far larger.

    Args:
        process: what the network was trained to do; x̂_0 is clipped as it says.
        x_start, x_t: [N, C, H, W].
        timestep: integers [N], 1..T−1.
        prediction: the network's, at (x_t, timestep).

    Raises:
        InputError: other shapes, or a timestep outside 1..T−1.
    """
    place = per_sample(timestep, process.schedule, len(x_t))
    if (place == 0).any():
        raise InputError("timestep 0 has no posterior variance, expected 1 or more; its term is decoder_term")
    schedule = process.schedule
    reverse = p_x_prev_given_x_t(process, x_t, timestep, prediction)
    weight = np.sqrt(schedule.alpha_bar_prev[place]) * schedule.betas[place] / (1.0 - schedule.alpha_bar[place])
    squared_difference = (weight * (np.asarray(x_start, np.float64) - reverse.x_start)) ** 2
    log_small, _ = log_variance_ends(schedule)
    return _sum_per_sample(gaussian_kl(squared_difference, log_small[place], reverse.log_variance))


def decoder_term(process: Process, x_start: np.ndarray, x_t: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """−ln p_θ(x_0 | x_t) at t = 0 with the discretized decoder, nats [N]; its mean over x_t is L_0.

    Ho et al. 2020, eq. 13.

    Args:
        process: what the network was trained to do; `process.sample.levels` bins.
        x_start, x_t: [N, C, H, W]; x_start on the levels, x_t ~ q(x_t | x_0) at timestep 0.
        prediction: the network's, at (x_t, 0).

    Raises:
        InputError: other shapes, or an x_start that is not on the levels.
    """
    reverse = p_x_prev_given_x_t(process, x_t, np.zeros(len(x_t), np.int64), prediction)
    return -_sum_per_sample(
        log_probability_of_level(x_start, reverse.mean, reverse.log_variance, process.sample.levels)
    )


def bound_term(
    process: Process, x_start: np.ndarray, x_t: np.ndarray, timestep: np.ndarray, prediction: np.ndarray
) -> np.ndarray:
    """The term of every sample's own timestep, nats [N]: `decoder_term` where it is 0, else `denoising_term`.

    Arguments and errors are theirs.
    """
    first = per_sample(timestep, process.schedule, len(x_t)).reshape(-1) == 0
    nats = np.empty(len(x_t))
    if first.any():
        nats[first] = decoder_term(process, x_start[first], x_t[first], prediction[first])
    if not first.all():
        rest = ~first
        nats[rest] = denoising_term(process, x_start[rest], x_t[rest], np.asarray(timestep)[rest], prediction[rest])
    return nats


def bits_per_dim(nats: np.ndarray, num_elements: int) -> np.ndarray:
    """Nats per image as bits per dimension: divided by ln 2 and by the C·H·W of one image."""
    return np.asarray(nats, np.float64) / (math.log(2.0) * num_elements)


def _sum_per_sample(values: np.ndarray) -> np.ndarray:
    total: np.ndarray = values.reshape(len(values), -1).sum(axis=1)
    return total
