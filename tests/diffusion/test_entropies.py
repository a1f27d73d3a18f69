"""Sohl-Dickstein's K against the sum of terms, on data with and without second moment 1."""

import math

import numpy as np
import pytest

from diffusion.bound import denoising_term, prior_term
from diffusion.gaussian import q_sample
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from tests.diffusion.entropies import cross_entropy_excess, edge_decoder_term, entropies, sohl_dickstein_bound
from tests.gaussian import GaussianNetwork

SCHEDULE = NoiseSchedule.make("linear", 12, 0.01, 0.35)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(16)
WEIGHTS = np.outer(WEIGHTS, WEIGHTS).reshape(-1) / WEIGHTS.sum() ** 2
FIRST, EPS = (axis.reshape(-1, 1, 1, 1) for axis in np.meshgrid(NODES, NODES))


def terms(mean, std, variance_type="fixed_large"):
    """(x_start, L_T, the sum of the L_{t−1}, the edge's L_0) of one-pixel Gaussian data, by quadrature."""
    process = Process(SampleShape(1, 1, 1), SCHEDULE, variance_type=variance_type, clip_sample=None)
    network = GaussianNetwork(process, mean, std)
    x_start = mean + std * FIRST
    denoising = 0.0
    for timestep in range(1, 12):
        x_t = q_sample(SCHEDULE, x_start, timestep, EPS)
        timesteps = np.full(len(x_t), timestep)
        denoising += WEIGHTS @ denoising_term(process, x_start, x_t, timesteps, network(x_t, timesteps))
    edge = WEIGHTS @ edge_decoder_term(SCHEDULE, x_start, q_sample(SCHEDULE, x_start, 0, EPS))
    return x_start, WEIGHTS @ prior_term(SCHEDULE, x_start), denoising, edge


@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.5), (-0.8, 1.3), (0.6, 0.8)])
def test_minus_k_is_the_sum_up_to_the_cross_entropies(mean, std):
    x_start, prior, denoising, edge = terms(mean, std)
    k = sohl_dickstein_bound(SCHEDULE, 1, denoising)
    excess = WEIGHTS @ cross_entropy_excess(SCHEDULE, x_start)
    assert -k + excess == pytest.approx(prior + denoising + edge, rel=1e-11)
    if mean**2 + std**2 == pytest.approx(1.0):
        assert excess == pytest.approx(0.0, abs=1e-12)
    else:
        assert abs(excess) > 1e-3


def test_k_is_exact_for_standard_normal_data():
    """q and p are then one chain in two directions (β is the best variance), and −K is the data's entropy."""
    _, _, denoising, _ = terms(0.0, 1.0)
    assert -sohl_dickstein_bound(SCHEDULE, 1, denoising) == pytest.approx(
        0.5 * math.log(2 * math.pi * math.e), rel=1e-12
    )
    _, _, worse, _ = terms(0.0, 1.0, "fixed_small")
    assert -sohl_dickstein_bound(SCHEDULE, 1, worse) > 0.5 * math.log(2 * math.pi * math.e) + 0.01


def test_the_three_entropies_are_those_of_gaussians():
    found = entropies(SCHEDULE, 64)
    variances = (1 - SCHEDULE.alpha_bar[-1], SCHEDULE.betas[0], 1.0)
    for entropy, variance in zip(found, variances, strict=True):
        assert entropy == pytest.approx(32 * math.log(2 * math.pi * math.e * variance), rel=1e-12)
