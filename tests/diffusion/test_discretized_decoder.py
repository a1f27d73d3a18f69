"""The decoder's bins: they cover the line, add up to 1, have no floor, and agree with 60-digit arithmetic."""

import mpmath
import numpy as np
import pytest

from diffusion.discretized_decoder import level_of, log_interval_probability, log_probability_of_level
from diffusion.errors import InputError


def all_levels(levels):
    return np.linspace(-1.0, 1.0, levels)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize(("mean", "noise_std"), [(0.0, 1.0), (0.3, 0.0074), (-1.7, 0.05), (0.9999, 1e-4)])
def test_the_probabilities_of_all_levels_add_up_to_one(levels, mean, noise_std):
    log_probability = log_probability_of_level(all_levels(levels), np.array(mean), 2 * np.log(noise_std), levels)
    np.testing.assert_allclose(np.exp(log_probability).sum(), 1.0, rtol=1e-12)


def test_the_outer_bins_are_open():
    # A mean far beyond the data belongs to the outer bin with certainty.
    log_probability = log_probability_of_level(np.array([-1.0, 1.0]), np.array([-9.0, 9.0]), np.log(1e-4), 17)
    np.testing.assert_allclose(log_probability, 0.0, atol=1e-15)


def test_an_inner_bin_is_half_a_step_to_either_side():
    # 17 levels: steps of 1/8. At a mean on the edge between two bins each has half, the rest being out of reach.
    levels = all_levels(17)
    log_probability = log_probability_of_level(levels, np.array(levels[3] + 1 / 16), np.log(1e-6), 17)
    np.testing.assert_allclose(np.exp(log_probability[3:5]), 0.5, rtol=1e-12)


def test_there_is_no_floor():
    # 250 noise_std away: the density alone tells the size, −½ (distance to the bin's near edge / noise_std)².
    near_edge = 2.0 - 1 / 255
    log_probability = log_probability_of_level(np.array([1.0]), np.array([-1.0]), 2 * np.log(0.008), 256)[0]
    assert log_probability == pytest.approx(-0.5 * (near_edge / 0.008) ** 2, rel=1e-3)
    assert log_probability < -30_000


@pytest.mark.parametrize("levels", [17, 256])
def test_float32_pixels_are_on_their_levels(levels):
    np.testing.assert_array_equal(level_of(all_levels(levels).astype(np.float32), levels), np.arange(levels))


@pytest.mark.parametrize("wrong", [0.01, -1.2, 1.125, np.nan])
def test_what_is_no_level_is_refused(wrong):
    with pytest.raises(InputError, match="expected one of 17 levels evenly spaced"):
        level_of(np.array([0.0, wrong]), 17)


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
