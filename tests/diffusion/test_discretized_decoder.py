"""The decoder's bins: they cover the line, add up to 1, and have no floor."""

import numpy as np
import pytest

from diffusion.discretized_decoder import level_of, log_probability_of_level
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
