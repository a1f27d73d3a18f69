"""The same bound written with consistency terms, which needs two random states in every term (Luo 2022, eq. 45).

Its terms compare q(x_{t−1} | x_{t−2}), one step from the data's side, with p_θ(x_{t−1} | x_t): so a draw needs
x_{t−2} and x_t. In the denoising-matching form (Luo 2022, eq. 58) q(x_{t−1} | x_t, x_0) takes the place of the former,
and x_t alone is random. The sums have the same mean; `compare_at` shows what the second randomness costs.

Tested for equal means, and for what the second random state costs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest

from diffusion.bound import denoising_term, gaussian_kl, prior_term
from diffusion.errors import InputError
from diffusion.gaussian import p_x_prev_given_x_t, per_sample, q_sample
from diffusion.noise_schedule import NoiseSchedule
from diffusion.normal import LIKELIHOOD, MAX_REPEATS, draw_number, normal_batch
from diffusion.process import VARIANCE_TYPES, Process, SampleShape
from diffusion.reference_loop import Predict
from tests.gaussian import GaussianNetwork

MEAN, STD = 0.3, 0.5
SHORT = NoiseSchedule.make("linear", 6, 0.02, 0.4)
LINEAR = NoiseSchedule.make("linear")


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


def network_of(schedule, variance_type="fixed_small", size=1):
    process = Process(SampleShape(1, size, size), schedule, variance_type=variance_type, clip_sample=None)
    return GaussianNetwork(process, MEAN, STD)


def grid(dimensions, degree=10):
    """Points [dimensions, M] and weights [M] of the mean over independent standard normal numbers."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(degree)
    points = np.meshgrid(*[nodes] * dimensions)
    product = np.ones(degree**dimensions)
    for axis in np.meshgrid(*[weights / weights.sum()] * dimensions):
        product = product * axis.reshape(-1)
    return [axis.reshape(-1, 1, 1, 1) for axis in points], product


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
def test_terms_differ_by_a_constant_and_the_sums_are_equal(variance_type):
    """Gauss–Hermite over x_0, x_{t−2} and x_t: polynomials of degree 2, so the quadrature is exact."""
    network = network_of(SHORT, variance_type)
    (first, before, step), weights = grid(3)
    x_start = MEAN + STD * first
    sums = np.zeros(2)
    for timestep in range(1, 6):
        timesteps = np.full(len(x_start), timestep)
        x_before, x_t = draw_neighbours(SHORT, x_start, timesteps, before, step)
        prediction = network(x_t, timesteps)
        denoising = weights @ denoising_term(network.process, x_start, x_t, timesteps, prediction)
        consistency = weights @ consistency_term(network.process, x_before, x_t, timesteps, prediction)
        constant = 0.5 * math.log(SHORT.posterior_variance[timestep] / SHORT.betas[timestep - 1])
        assert consistency - denoising == pytest.approx(constant, rel=1e-9, abs=1e-12)
        sums += denoising, consistency
    last = q_sample(SHORT, x_start, 4, before)
    sums += weights @ prior_term(SHORT, x_start), weights @ consistency_prior_term(SHORT, last)
    assert sums[0] == pytest.approx(sums[1], rel=1e-10)


def test_the_divergence_as_printed_counts_too_much():
    """KL(q(x_{t−1} | x_{t−2}) ‖ p(x_{t−1} | x_t)) over both neighbours is gain·√α_t·β_{t−1}/σ² above the term."""
    network = network_of(SHORT, "fixed_large")
    (first, before, step), weights = grid(3)
    x_start = MEAN + STD * first
    steps = network.steps(np.arange(5, -1, -1))
    for timestep in range(1, 6):
        timesteps = np.full(len(x_start), timestep)
        x_before, x_t = draw_neighbours(SHORT, x_start, timesteps, before, step)
        gain, shift, noise_std = steps[5 - timestep]
        squared = (math.sqrt(SHORT.alphas[timestep - 1]) * x_before - gain * x_t - shift) ** 2
        log_variances = np.log(SHORT.betas[timestep - 1]), 2 * np.log(noise_std)
        printed = weights @ gaussian_kl(squared, *log_variances).reshape(-1)
        term = weights @ consistency_term(network.process, x_before, x_t, timesteps, network(x_t, timesteps))
        excess = gain * math.sqrt(SHORT.alphas[timestep]) * SHORT.betas[timestep - 1] / noise_std**2
        assert printed - term == pytest.approx(excess, rel=1e-9)
        assert excess > 0.1


def test_neighbours_have_the_moments_of_the_forward_process():
    (before, step), weights = grid(2)
    x_start = np.full_like(before, 0.7)
    for timestep in (1, 4):
        x_before, x_t = draw_neighbours(SHORT, x_start, np.full(len(before), timestep), before, step)
        x_before, x_t = x_before.reshape(-1), x_t.reshape(-1)
        alpha_bar = SHORT.alpha_bar[timestep]
        assert weights @ x_t == pytest.approx(0.7 * math.sqrt(alpha_bar), rel=1e-12)
        assert weights @ x_t**2 - (weights @ x_t) ** 2 == pytest.approx(1 - alpha_bar, rel=1e-12)
        alpha_bar_before = 1.0 if timestep == 1 else SHORT.alpha_bar[timestep - 2]
        covariance = weights @ (x_before * x_t) - (weights @ x_before) * (weights @ x_t)
        expected = math.sqrt(alpha_bar / alpha_bar_before) * (1 - alpha_bar_before)
        assert covariance == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_the_claimed_reduction_of_variance_is_there():
    """docs/theory.md quotes these factors, for 8×8 Gaussian data of standard deviation 0.5 on the linear schedule."""
    network = network_of(LINEAR, size=8)
    x_start = MEAN + STD * np.random.default_rng(0).standard_normal((8, 1, 8, 8))
    factors, sums = {}, np.zeros(2)
    # The first 20 timesteps, then the middle of every 10: enough for the sum over all of them.
    for timestep, width in [*((t, 1) for t in range(1, 20)), *((t, 10) for t in range(25, 1000, 10))]:
        found = compare_at(network.process, network, x_start, timestep, num_draws=16)
        constant = 32 * math.log(LINEAR.posterior_variance[timestep] / LINEAR.betas[timestep - 1])
        spread = math.sqrt((found.consistency_variance + found.denoising_variance) / (8 * 16))
        assert abs(found.consistency_mean - found.denoising_mean - constant) < 4.5 * spread
        factors[timestep] = found.consistency_variance / found.denoising_variance
        sums += width * found.denoising_variance, width * found.consistency_variance
    assert factors[505] > 1e6
    assert factors[105] > 10
    # Not at the first timesteps: there the posterior of x_{t−1} holds all that is random in x_0 − x̂_0.
    assert factors[1] < 1
    assert 3 < sums[1] / sums[0] < 6


@pytest.mark.parametrize("num_draws", [1, 129])
def test_a_number_of_draws_that_the_noise_has_not_is_refused(num_draws):
    network = network_of(LINEAR)
    with pytest.raises(InputError, match="expected 2..128"):
        compare_at(network.process, network, np.zeros((1, 1, 1, 1)), 5, num_draws=num_draws)


def test_timestep_zero_is_refused():
    x = np.zeros((1, 1, 1, 1))
    with pytest.raises(InputError, match="no state two steps before it"):
        draw_neighbours(SHORT, x, np.array([0]), x, x)
