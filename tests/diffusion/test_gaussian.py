"""q(x_t | x_0) and its posterior against Bayes' rule and the chain of single steps."""

import numpy as np
import pytest

from diffusion.gaussian import p_x_prev_given_x_t, per_sample, q_sample, q_x_prev_given_x_t, q_x_t_given_x_start
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape

SCHEDULE = NoiseSchedule.make("linear", 40, 1e-3, 0.3)


@pytest.mark.parametrize("timestep", [0, 1, 17, 39])
def test_marginal_is_the_composition_of_single_steps(timestep):
    mean, variance = 0.7, 0.0
    for beta in SCHEDULE.betas[: timestep + 1]:  # Ho et al. 2020, eq. 2, one step after the other
        mean, variance = np.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    marginal = q_x_t_given_x_start(SCHEDULE, np.array(0.7), timestep)
    np.testing.assert_allclose(marginal.mean, mean, rtol=1e-13)
    np.testing.assert_allclose(marginal.variance, variance, rtol=1e-12)


@pytest.mark.parametrize("timestep", [1, 17, 39])
def test_posterior_is_bayes_rule(timestep):
    x_start, x_t = 0.4, -1.3
    prior = q_x_t_given_x_start(SCHEDULE, np.array(x_start), timestep - 1)
    alpha, beta = SCHEDULE.alphas[timestep], SCHEDULE.betas[timestep]
    # Product of N(x_prev; prior) and N(x_t; √α x_prev, β), by precisions.
    precision = 1 / prior.variance + alpha / beta
    mean = (prior.mean / prior.variance + np.sqrt(alpha) * x_t / beta) / precision
    posterior = q_x_prev_given_x_t(SCHEDULE, np.array(x_start), np.array(x_t), timestep)
    np.testing.assert_allclose(posterior.mean, mean, rtol=1e-11)
    np.testing.assert_allclose(posterior.variance, 1 / precision, rtol=1e-11)


def test_posterior_of_the_first_timestep_is_the_data():
    posterior = q_x_prev_given_x_t(SCHEDULE, np.array(0.4), np.array(9.0), 0)
    np.testing.assert_allclose(posterior.mean, 0.4, rtol=1e-12)
    assert posterior.variance == 0.0


def test_q_sample_broadcasts_a_timestep_per_sample():
    x_start, eps = np.ones((3, 1, 2, 2)), np.full((3, 1, 2, 2), 2.0)
    timesteps = np.array([0, 5, 39]).reshape(3, 1, 1, 1)
    x_t = q_sample(SCHEDULE, x_start, timesteps, eps)
    expected = np.sqrt(SCHEDULE.alpha_bar[[0, 5, 39]]) + 2 * np.sqrt(1 - SCHEDULE.alpha_bar[[0, 5, 39]])
    np.testing.assert_allclose(x_t[:, 0, 1, 1], expected, rtol=1e-14)


def test_x_start_is_clipped_at_both_ends_for_each_sample_at_its_own_timestep():
    process = Process(SampleShape(1, 1, 2), SCHEDULE, prediction_type="sample", clip_sample=0.5)
    prediction = np.array([-9.0, 9.0, -0.25, 0.25]).reshape(2, 1, 1, 2)
    step = p_x_prev_given_x_t(process, np.zeros((2, 1, 1, 2)), np.array([3, 30]), prediction)
    np.testing.assert_array_equal(step.x_start.ravel(), [-0.5, 0.5, -0.25, 0.25])
    assert per_sample(np.array([3, 30]), SCHEDULE, 2).shape == (2, 1, 1, 1)
