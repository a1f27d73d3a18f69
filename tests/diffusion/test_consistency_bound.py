"""Luo's two forms of the bound: equal means, and how much the second random state costs."""

import math

import numpy as np
import pytest

from diffusion.bound import denoising_term, gaussian_kl, prior_term
from diffusion.errors import InputError
from diffusion.gaussian import q_sample
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import VARIANCE_TYPES, Process, SampleShape
from tests.diffusion.consistency_bound import compare_at, consistency_prior_term, consistency_term, draw_neighbours
from tests.gaussian import GaussianNetwork

MEAN, STD = 0.3, 0.5
SHORT = NoiseSchedule.make("linear", 6, 0.02, 0.4)
LINEAR = NoiseSchedule.make("linear")


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
