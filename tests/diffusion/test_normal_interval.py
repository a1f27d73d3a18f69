"""Probabilities of intervals against 50-digit arithmetic, from the centre to 10,000 standard deviations away."""

import mpmath
import numpy as np
import pytest

from diffusion.normal_interval import log_interval_probability


def exact(lower, upper):
    """ln[Φ(upper) − Φ(lower)] with 60 digits."""
    if lower + upper < 0:
        lower, upper = -upper, -lower
    with mpmath.workdps(60):
        root = mpmath.sqrt(2)
        tails = [mpmath.erfc(mpmath.mpf(float(end)) / root) for end in (lower, upper)]
        return float(mpmath.log((tails[0] - tails[1]) / 2))


@pytest.mark.parametrize(("distance", "width"), [(1, 1.0), (5, 0.5), (40, 1.0), (300, 16.0), (1e4, 0.01)])
def test_agrees_with_60_digits(distance, width):
    rng = np.random.default_rng(0)
    lower = rng.normal(size=20) * distance
    upper = lower + width * rng.uniform(0.1, 1.0, 20)
    expected = [exact(a, b) for a, b in zip(lower, upper, strict=True)]
    np.testing.assert_allclose(log_interval_probability(lower, upper), expected, rtol=2e-14)


def test_narrow_intervals_about_the_centre():
    lower = np.array([-0.5e-3, 0.0, -1e-3, 0.7])
    expected = [exact(a, a + 1e-3) for a in lower]
    np.testing.assert_allclose(log_interval_probability(lower, lower + 1e-3), expected, rtol=1e-12)


def test_open_ends():
    np.testing.assert_allclose(log_interval_probability(-np.inf, np.inf), 0.0, atol=1e-15)
    np.testing.assert_allclose(log_interval_probability(-np.inf, 0.0), -np.log(2.0), rtol=1e-15)
    np.testing.assert_allclose(log_interval_probability(50.0, np.inf), exact(50.0, 1e6), rtol=1e-15)
    np.testing.assert_allclose(log_interval_probability(-np.inf, -50.0), exact(50.0, 1e6), rtol=1e-15)
