"""The rows between a chain's ends, where the multistep methods have their order.

DEIS is quadrature: its weights are right if they integrate polynomials in ln ρ exactly, up to a degree and no further.
UniPC's corrector depends on the prediction that it corrects, so its rows are run on a flow that is known.
"""

from math import factorial

import numpy as np
import pytest

from diffusion.noise_schedule import NoiseSchedule
from diffusion.samplers.deis import deis_columns
from diffusion.samplers.exponential_integrator import extrapolation, first_order, half_log_snr, log_snr_steps
from diffusion.samplers.unipc import unipc_columns
from tests.diffusion.samplers.networks import flow_of_gaussian_data

LINEAR = NoiseSchedule.make("linear").alpha_bar
MEAN = 0.3


def at(lambdas):
    """ᾱ of λ = ½ ln(ᾱ/(1−ᾱ))."""
    return 1 / (1 + np.exp(-2 * lambdas))


def integral(degree, alpha_bar, alpha_bar_prev):
    """∫ (ln r)ⁿ dr over [ρ, ρ′], in closed form."""

    def antiderivative(r):
        y = np.log(r)
        return r * sum(
            (-1) ** k * factorial(degree) / factorial(degree - k) * y ** (degree - k) for k in range(degree + 1)
        )

    rho, rho_prev = (np.sqrt((1 - each) / each) for each in (alpha_bar, alpha_bar_prev))
    return antiderivative(rho_prev) - antiderivative(rho)


def deis_errors(order, degree, alpha_bar, x=0.7):
    """How far every row is from x/√ᾱ + ∫ eps dρ, in units of ρ, if eps is (ln ρ)ⁿ; [R]."""
    own, ends = alpha_bar[:-1], alpha_bar[1:]
    columns = {"c2": np.zeros_like(own)} | deis_columns(own, ends, order)
    eps = (-half_log_snr(own)) ** degree  # ln ρ = −λ
    x_start = (x - np.sqrt(1 - own) * eps) / np.sqrt(own)
    history = columns["d"] * x + columns["f"] * x_start  # what a row keeps, which should be eps
    h1, h2 = np.append(0, history[:-1]), np.append([0, 0], history[:-2])
    x_prev = columns["a"] * x + columns["b"] * x_start + columns["c1"] * h1 + columns["c2"] * h2
    return x_prev / np.sqrt(ends) - x / np.sqrt(own) - integral(degree, own, ends)


@pytest.mark.parametrize(("order", "degree"), [(order, degree) for order in (2, 3) for degree in range(4)])
def test_deis_integrates_polynomials_below_its_order(order, degree):
    alpha_bar = LINEAR[[999, 900, 640, 500, 210, 90, 13, 2, 0]]
    rho = np.sqrt((1 - alpha_bar) / alpha_bar)
    scale = (rho[:-1] - rho[1:]) * (1 + np.abs(np.log(rho)).max() ** degree)
    errors = np.abs(deis_errors(order, degree, alpha_bar)) / scale
    rows = np.arange(len(errors))
    # The first and the last row know one prediction, the second row two.
    known = np.where((rows == 0) | (rows == rows[-1]), 1, np.minimum(rows + 1, order))
    exact = degree < known
    assert errors[exact].max(initial=0) < 1e-12
    assert errors[~exact].min(initial=1) > 1e-5


@pytest.mark.parametrize("order", [2, 3])
def test_the_first_power_that_deis_misses_is_of_its_order(order):
    # h^(order + 1) in one row is of that order in a chain; here of the fourth row of six, around ρ = 1.
    steps = np.array([0.02, 0.01, 0.005])
    errors = [abs(deis_errors(order, order, at(h * np.arange(-3, 4)))[3]) for h in steps]
    np.testing.assert_allclose(np.diff(np.log(errors)) / np.diff(np.log(steps)), order + 1, atol=0.05)


def unipc_error(num_steps, std):
    """The largest distance to the flow from ᾱ_T to ᾱ_0 with all of them inner rows that begin with exact histories."""
    lambdas = np.linspace(*half_log_snr(LINEAR[[-1, 0]]), num_steps + 1)
    h = lambdas[1] - lambdas[0]
    # A row before them, which gives the histories, and one after, which is the chain's last.
    lambdas = np.concatenate([[lambdas[0] - h], lambdas, [lambdas[-1] + h]])
    own, ends = at(lambdas[:-1]), at(lambdas[1:])
    c = unipc_columns(own, ends)
    x = x_c = np.linspace(-2.5, 2.5, 9)

    def x_start(x, alpha_bar):
        return MEAN + np.sqrt(alpha_bar) * std**2 * (x - np.sqrt(alpha_bar) * MEAN) / (
            alpha_bar * std**2 + 1 - alpha_bar
        )

    # b = A·γ + B·(1 + κ), and h1 is the corrected state without γ·x_start.
    of_x, of_x_start = first_order(own, ends)
    gamma = (c["b"] - of_x_start * (1 + extrapolation(*log_snr_steps(own, ends)))) / of_x
    h1 = x_c - gamma[1] * x_start(x, own[1])
    h2 = x_start(flow_of_gaussian_data(x, own[1], own[0], MEAN, std), own[0])
    for row in range(1, num_steps + 1):
        now = x_start(x, own[row])
        x_c = h1 + gamma[row] * now
        x_next = c["a"][row] * x + c["b"][row] * now + c["c1"][row] * h1 + c["c2"][row] * h2
        h1 = c["d"][row] * x + c["f"][row] * now + c["g1"][row] * h1 + c["g2"][row] * h2
        x, h2 = x_next, now
    x_c = h1 + gamma[-1] * x_start(x, own[-1])
    return np.abs(x_c - flow_of_gaussian_data(np.linspace(-2.5, 2.5, 9), own[1], own[-1], MEAN, std)).max()


@pytest.mark.parametrize("std", [0.5, 0.1])
def test_unipcs_inner_rows_are_third_order(std):
    errors = [unipc_error(num_steps, std) for num_steps in (40, 80, 160, 320)]
    np.testing.assert_allclose(np.log2(errors[:-1]) - np.log2(errors[1:]), 3, atol=0.1)
