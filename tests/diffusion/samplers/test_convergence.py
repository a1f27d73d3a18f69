"""Order of convergence to the closed-form flow of Gaussian data, on points uniform in λ with continuous ᾱ.

Of whole chains, ends included; test_inner_rows.py has what the rows between the ends are.
"""

import numpy as np
import pytest

from diffusion.noise_schedule import NoiseSchedule
from diffusion.prediction import x_start_coefficients
from diffusion.reference_loop import reference_loop
from diffusion.samplers.ddim import ddim_columns
from diffusion.samplers.deis import deis_columns
from diffusion.samplers.dpmpp import dpmpp_2m_columns, dpmpp_sde_2m_columns
from diffusion.samplers.exponential_integrator import half_log_snr
from diffusion.samplers.unipc import unipc_columns
from diffusion.step_table import StepTable
from tests.diffusion.samplers.networks import a_process, flow_of_gaussian_data, gaussian

MEAN, STD = 0.3, 0.5
NUM_STEPS = (80, 160, 320)


def deis_3_columns(alpha_bar, alpha_bar_prev):
    return deis_columns(alpha_bar, alpha_bar_prev, order=3)


METHODS = {
    "ddim": (ddim_columns, 0),
    "dpmpp_2m": (dpmpp_2m_columns, 1),
    "deis": (deis_columns, 1),
    "deis_3": (deis_3_columns, 2),
    "unipc": (unipc_columns, 2),
}


def points(num_steps):
    """ᾱ of N + 1 points uniform in λ from the ᾱ_0 to the ᾱ_T of the linear schedule, descending."""
    lambdas = half_log_snr(NoiseSchedule.make("linear").alpha_bar[[0, -1]])
    return 1 / (1 + np.exp(-2 * np.linspace(*lambdas, num_steps + 1)))


def error(method, num_steps, std):
    """The largest distance to the flow from ᾱ_T to ᾱ_0, of points of both signs."""
    columns, histories = METHODS[method]
    alpha_bar = points(num_steps)
    process = a_process(schedule=NoiseSchedule.explicit(1 - alpha_bar / np.append(1, alpha_bar[:-1])))
    own, ends = alpha_bar[:0:-1], alpha_bar[-2::-1]
    u, v = x_start_coefficients("epsilon", own)
    table = StepTable.from_columns(
        method,
        np.arange(num_steps, 0, -1),
        {"u": u, "v": v, **columns(own, ends)},
        histories=histories,
        h2_is_x_start=method == "unipc",
    )
    x = np.linspace(-2.5, 2.5, 9).reshape(9, 1, 1, 1)
    ours = reference_loop(table, gaussian(process, MEAN, std), x)
    return np.abs(ours - flow_of_gaussian_data(x, own[0], ends[-1], MEAN, std)).max()


def slope(errors):
    """Of errors at `NUM_STEPS`."""
    return -np.polyfit(np.log(NUM_STEPS), np.log(errors), 1)[0]


@pytest.mark.parametrize(
    ("method", "std", "order"),
    [
        ("ddim", 0.5, 1),
        ("dpmpp_2m", 0.5, 2),
        ("deis", 0.5, 2),
        # UniPC-2's corrector raises its inner rows to 3 (Zhao et al. 2023, theorem 3.1), whose error is by far the
        # largest here: each doubling of N has a slope of 3.0.
        ("unipc", 0.5, 3),
        # Where data are as narrow as the noise at ᾱ_0, what is left is the last row's: first order, so h² in one step.
        ("unipc", 0.01, 2),
        ("deis_3", 0.01, 2),
    ],
)
def test_order_on_the_probability_flow(method, std, order):
    errors = [error(method, num_steps, std) for num_steps in NUM_STEPS]
    assert slope(errors) == pytest.approx(order, abs=0.1)
    np.testing.assert_allclose(np.log2(errors[:-1]) - np.log2(errors[1:]), order, atol=0.15)  # no mean of others


def test_the_last_row_of_deis_3_is_what_is_left_with_many_steps():
    # With fewer, its slope is a mixture of 2 and of what the inner rows have: 3.6 from N = 40, 2.6 from 160.
    coarse, fine = (error("deis_3", num_steps, 0.5) for num_steps in (1280, 2560))
    assert np.log2(coarse / fine) == pytest.approx(2, abs=0.05)


def test_a_third_point_is_worth_its_memory():
    assert error("deis_3", 20, 0.5) < 0.2 * error("deis", 20, 0.5)


@pytest.mark.parametrize(
    ("columns", "order"), [(dpmpp_sde_2m_columns, 2), (lambda *ends: ddim_columns(*ends, eta=1.0), 1)]
)
def test_order_of_the_variance_of_the_stochastic_samplers(columns, order):
    # For Gaussian data the mean of these chains is exact at any step: x_start is a martingale. Their variance is not.
    errors = []
    for num_steps in NUM_STEPS:
        alpha_bar = points(num_steps)
        own, ends = alpha_bar[:0:-1], alpha_bar[-2::-1]
        rows = {"c1": np.zeros(num_steps), **columns(own, ends)}
        variance = alpha_bar * STD**2 + 1 - alpha_bar
        slopes = np.sqrt(own) * STD**2 / variance[:0:-1]  # of E[x_0 | x_t], as in tests/gaussian.py
        covariance = np.diag([variance[-1], 0.0])  # of (x, h1), h1 the last x_start
        for a, b, c1, s, of_x in zip(rows["a"], rows["b"], rows["c1"], rows["s"], slopes, strict=True):
            step = np.array([[a + b * of_x, c1], [of_x, 0.0]])
            covariance = step @ covariance @ step.T + np.diag([s**2, 0.0])
        errors.append(abs(covariance[0, 0] - variance[0]))
    assert slope(errors) == pytest.approx(order, abs=0.1)
