"""φ_k and λ against exact rational and integral values."""

from fractions import Fraction
from math import factorial

import numpy as np
import pytest

from diffusion.samplers.exponential_integrator import first_order, half_log_snr, log_snr_steps, phi


def exact_phi(order: int, z: Fraction) -> float:
    # φ_k(z) = Σ_j z^j/(j+k)!, in exact arithmetic, so nothing cancels
    return float(sum(z**power / factorial(power + order) for power in range(120)))


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_phi(order):
    z = [Fraction(0), Fraction(-1, 10**9), Fraction(-1, 1000), Fraction(-1, 2), Fraction(-999, 1000), Fraction(-1)]
    z += [Fraction(-1001, 1000), Fraction(-3), Fraction(-10), Fraction(-20)]
    expected = [exact_phi(order, value) for value in z]
    np.testing.assert_allclose(phi(order, np.array([float(value) for value in z])), expected, rtol=5e-15)


def test_phi_at_minus_infinity():
    np.testing.assert_array_equal([phi(order, np.array([-np.inf])) for order in (0, 1, 2, 3)], np.zeros((4, 1)))


def test_steps_in_log_snr_reach_both_ends():
    alpha_bar, alpha_bar_prev = np.array([0.0, 0.1, 0.9]), np.array([0.1, 0.9, 1.0])
    h, h_prev = log_snr_steps(alpha_bar, alpha_bar_prev)
    np.testing.assert_array_equal(h, [np.inf, h[1], np.inf])
    assert h[1] == pytest.approx(np.log(9))  # ½ ln(0.9/0.1) − ½ ln(0.1/0.9)
    np.testing.assert_array_equal(h_prev, [np.inf, np.inf, h[1]])
    assert half_log_snr(np.array([0.5]))[0] == 0.0


def test_first_order_is_exact_for_a_fixed_pair():
    # x = √ᾱ x_0 + √(1−ᾱ) ε goes to √ᾱ′ x_0 + √(1−ᾱ′) ε
    alpha_bar, alpha_bar_prev = np.array([0.0, 0.2]), np.array([0.2, 1.0])
    of_x, of_x_start = first_order(alpha_bar, alpha_bar_prev)
    x_0, eps = 0.3, -1.7
    moved = of_x * (np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * eps) + of_x_start * x_0
    np.testing.assert_allclose(moved, np.sqrt(alpha_bar_prev) * x_0 + np.sqrt(1 - alpha_bar_prev) * eps, rtol=1e-15)
