"""Another form of the bound: K, a sum of divergences and three entropies (Sohl-Dickstein et al. 2015, section 2.4).

    K = −Σ_{t>1} E KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t)) + H_q(X_T | X_0) − H_q(X_1 | X_0) − H_p(X_T)

The divergences are those of `diffusion.bound`. The entropies stand for L_T and L_0, and −K equals L_T + Σ L_{t−1} + L_0
up to two things (appendix B there):

- K takes the cross entropy of q(x_T) with p(x_T) for the entropy of p(x_T), and at x_1 likewise. They are equal where
  the data have second moment 1, to which the forward process leads; `cross_entropy_excess` is the difference otherwise.
- K's last step is not learned: p(x_0 | x_1) = q(x_1 | x_0) π(x_0)/π(x_1), the forward step turned round
  (`edge_decoder_term`), a density in place of the probability of a bin. The discretized decoder's L_0 replaces it.

Tested on data with and without second moment 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest

from diffusion.bound import denoising_term, prior_term
from diffusion.gaussian import q_sample
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from tests.gaussian import GaussianNetwork

SCHEDULE = NoiseSchedule.make("linear", 12, 0.01, 0.35)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(16)
WEIGHTS = np.outer(WEIGHTS, WEIGHTS).reshape(-1) / WEIGHTS.sum() ** 2
FIRST, EPS = (axis.reshape(-1, 1, 1, 1) for axis in np.meshgrid(NODES, NODES))


class Entropies(NamedTuple):
    """The three entropies of K, in nats, for all elements of an image.

    Attributes:
        last_given_data: H_q(X_T | X_0).
        first_given_data: H_q(X_1 | X_0), the papers' X_1: timestep 0.
        prior: H_p(X_T).
    """

    last_given_data: float
    first_given_data: float
    prior: float


def entropies(schedule: NoiseSchedule, num_elements: int) -> Entropies:
    """Of the Gaussian forward process: ½ C·H·W · ln(2πe · variance) (Sohl-Dickstein et al. 2015, appendix B).

    Args:
        schedule: the noise schedule.
        num_elements: C·H·W.
    """
    of_unit = 0.5 * num_elements * math.log(2.0 * math.pi * math.e)
    alpha_bar = schedule.alpha_bar
    return Entropies(
        last_given_data=of_unit + 0.5 * num_elements * math.log1p(-alpha_bar[-1]),
        first_given_data=of_unit + 0.5 * num_elements * math.log(schedule.betas[0]),
        prior=of_unit,
    )


def sohl_dickstein_bound(schedule: NoiseSchedule, num_elements: int, denoising_sum: float) -> float:
    """K, in nats per image, a lower bound of the mean of ln p(x_0) (Sohl-Dickstein et al. 2015, section 2.4).

    Args:
        schedule: the noise schedule.
        num_elements: C·H·W.
        denoising_sum: the mean over images of the sum of `denoising_term` over the timesteps 1..T−1.
    """
    last, first, prior = entropies(schedule, num_elements)
    return -denoising_sum + last - first - prior


def cross_entropy_excess(schedule: NoiseSchedule, x_start: np.ndarray) -> np.ndarray:
    """What K leaves out of L_T + L_0: ½ (ᾱ_T + β_1) (‖x_0‖² − C·H·W), nats [N].

    Its first part is E[−ln p(x_T)] − H_p(X_T), the second E[ln π(x_1) − ln π(x_0)] given x_0.

    Args:
        schedule: the noise schedule.
        x_start: [N, C, H, W].
    """
    excess = (np.asarray(x_start, np.float64) ** 2 - 1.0).reshape(len(x_start), -1).sum(axis=1)
    return np.asarray(0.5 * (schedule.alpha_bar[-1] + schedule.betas[0]) * excess)


def edge_decoder_term(schedule: NoiseSchedule, x_start: np.ndarray, x_t: np.ndarray) -> np.ndarray:
    """−ln of the density of x_0 given x_t at t = 0 under K's last step N(√(1 − β_1) x_1, β_1 I), nats [N].

    Args:
        schedule: the noise schedule.
        x_start, x_t: [N, C, H, W]; x_t ~ q(x_t | x_0) at timestep 0.
    """
    beta = schedule.betas[0]
    squared = (np.asarray(x_start, np.float64) - np.sqrt(1.0 - beta) * x_t) ** 2 / beta
    return np.asarray(0.5 * (squared + math.log(2.0 * math.pi * beta)).reshape(len(x_start), -1).sum(axis=1))


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
