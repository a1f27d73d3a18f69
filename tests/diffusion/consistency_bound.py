"""The same bound written with consistency terms, which needs two random states in every term (Luo 2022, eq. 45).

Its terms compare q(x_{t−1} | x_{t−2}), one step from the data's side, with p_θ(x_{t−1} | x_t): so a draw needs
x_{t−2} and x_t. In the denoising-matching form (Luo 2022, eq. 58) q(x_{t−1} | x_t, x_0) takes the place of the former,
and x_t alone is random. The sums have the same mean; `compare_at` shows what the second randomness costs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffusion.bound import denoising_term, gaussian_kl
from diffusion.errors import InputError
from diffusion.gaussian import p_x_prev_given_x_t, per_sample
from diffusion.noise_schedule import NoiseSchedule
from diffusion.normal import LIKELIHOOD, MAX_REPEATS, draw_number, normal_batch
from diffusion.process import Process
from diffusion.reference_loop import Predict


class Neighbours(NamedTuple):
    """A draw of q(x_{t−2}, x_t | x_0), [N, C, H, W] each; x_{t−2} is x_0 itself at t = 1."""

    x_before: np.ndarray
    x_t: np.ndarray


def draw_neighbours(
    schedule: NoiseSchedule, x_start: np.ndarray, timestep: np.ndarray, eps_before: np.ndarray, eps_step: np.ndarray
) -> Neighbours:
    """x_{t−2} from x_0, then x_t from it, two steps of the forward process at once (Ho et al. 2020, eqs. 2 and 4).

    Args:
        schedule: the noise schedule.
        x_start: [N, C, H, W].
        timestep: integers [N], 1..T−1.
        eps_before, eps_step: standard normal, shape of x_start.

    Raises:
        InputError: a timestep outside 1..T−1.
    """
    place = _from_one(schedule, timestep, len(x_start))
    alpha_bar_before = schedule.alpha_bar_prev[place - 1]
    two_steps = schedule.alphas[place - 1] * schedule.alphas[place]
    x_before = np.sqrt(alpha_bar_before) * x_start + np.sqrt(1.0 - alpha_bar_before) * eps_before
    return Neighbours(x_before, np.sqrt(two_steps) * x_before + np.sqrt(1.0 - two_steps) * eps_step)


def consistency_term(
    process: Process, x_before: np.ndarray, x_t: np.ndarray, timestep: np.ndarray, prediction: np.ndarray
) -> np.ndarray:
    """E[ln q(x_{t−1} | x_{t−2}) − ln p_θ(x_{t−1} | x_t)] given x_{t−2} and x_t, nats [N].

    The third term of Luo 2022, eq. 45. The mean over x_{t−1} is taken in closed form, with its distribution given both
    neighbours. Printed as a KL divergence, the term has x_{t−1} depend on x_{t−2} alone and so counts it as independent
    of x_t: that is about one nat per element and timestep too much on a fine schedule, and no longer the same bound.

    The term's mean exceeds that of `diffusion.bound.denoising_term` by ½ C·H·W · ln(β̃_t/β_{t−1}), whatever the network:
    over all t this makes up for the two forms' different prior terms.

    Args:
        process: what the network was trained to do.
        x_before, x_t: [N, C, H, W], from `draw_neighbours`.
        timestep: integers [N], 1..T−1.
        prediction: the network's, at (x_t, timestep).

    Raises:
        InputError: other shapes, or a timestep outside 1..T−1.
    """
    schedule = process.schedule
    place = _from_one(schedule, timestep, len(x_t))
    reverse = p_x_prev_given_x_t(process, x_t, timestep, prediction)
    beta_before, beta = schedule.betas[place - 1], schedule.betas[place]
    alpha_before, alpha = schedule.alphas[place - 1], schedule.alphas[place]
    # q(x_{t−1} | x_{t−2}, x_t) by Bayes' rule; forward_mean is that of q(x_{t−1} | x_{t−2}).
    forward_mean = np.sqrt(alpha_before) * x_before
    shift = np.sqrt(alpha) * beta_before / (1.0 - alpha_before * alpha) * (x_t - np.sqrt(alpha) * forward_mean)
    variance = beta_before * beta / (1.0 - alpha_before * alpha)
    under_p = (variance + (forward_mean + shift - reverse.mean) ** 2) * np.exp(-reverse.log_variance)
    under_q = (variance + shift**2) / beta_before
    nats = 0.5 * (reverse.log_variance - np.log(beta_before) + under_p - under_q)
    return np.asarray(nats.reshape(len(nats), -1).sum(axis=1))


def consistency_prior_term(schedule: NoiseSchedule, x_before_last: np.ndarray) -> np.ndarray:
    """KL(q(x_T | x_{T−1}) ‖ N(0, I)), nats [N]: the second term of eq. 45 of Luo 2022.

    Args:
        schedule: the noise schedule.
        x_before_last: [N, C, H, W], a draw of the papers' x_{T−1}: q_sample at index T−2, or data where T = 1.
    """
    squared_mean = schedule.alphas[-1] * np.asarray(x_before_last, np.float64) ** 2
    kl = gaussian_kl(squared_mean, np.log(schedule.betas[-1]), np.zeros(()))
    return np.asarray(kl.reshape(len(kl), -1).sum(axis=1))


class Comparison(NamedTuple):
    """Both kinds of term at one timestep: the mean over images, and the variance of one draw given the image."""

    denoising_mean: float
    denoising_variance: float
    consistency_mean: float
    consistency_variance: float


def compare_at(
    process: Process, predict: Predict, x_start: np.ndarray, timestep: int, num_draws: int = 16, seed: int = 0
) -> Comparison:
    """Estimate both terms from the same draws and the same predictions, in nats.

    Args:
        process: what the network was trained to do.
        predict: the network.
        x_start: [N, C, H, W].
        timestep: 1..T−1.
        num_draws: 2..128, for each image.
        seed: of the noise.

    Raises:
        InputError: a number outside its range.
    """
    if not 2 <= num_draws <= MAX_REPEATS // 2:
        raise InputError(f"num_draws is {num_draws}, expected 2..{MAX_REPEATS // 2}")
    num, chw = len(x_start), x_start.shape[1:]
    timesteps = np.full(num, timestep)
    nats = np.empty((2, num_draws, num))
    for draw in range(num_draws):
        eps_before, eps_step = (
            normal_batch(chw, [seed] * num, range(num), draw_number(timestep, LIKELIHOOD, repeat))
            for repeat in (2 * draw, 2 * draw + 1)
        )
        x_before, x_t = draw_neighbours(process.schedule, x_start, timesteps, eps_before, eps_step)
        prediction = predict(x_t, timesteps.astype(x_t.dtype))
        nats[0, draw] = denoising_term(process, x_start, x_t, timesteps, prediction)
        nats[1, draw] = consistency_term(process, x_before, x_t, timesteps, prediction)
    means, variances = nats.mean(axis=(1, 2)), nats.var(axis=1, ddof=1).mean(axis=1)
    return Comparison(float(means[0]), float(variances[0]), float(means[1]), float(variances[1]))


def _from_one(schedule: NoiseSchedule, timestep: np.ndarray, num: int) -> np.ndarray:
    place = per_sample(timestep, schedule, num)
    if (place == 0).any():
        raise InputError("timestep 0 has no state two steps before it, expected 1 or more")
    return place
