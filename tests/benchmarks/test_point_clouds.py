"""Distances between point clouds against closed forms."""

import numpy as np
import pytest

from benchmarks.swiss_roll.point_clouds import distance_to_curve, sliced_wasserstein, squared_mmd

RNG = np.random.default_rng(0)


def test_sliced_wasserstein_of_a_shift_is_its_length_over_root_two():
    points = RNG.standard_normal((300, 2))
    shifted = points[::-1] + np.array([0.3, -0.4])
    assert sliced_wasserstein(points, shifted) == pytest.approx(0.5 / np.sqrt(2.0), rel=1e-12)
    assert sliced_wasserstein(points, RNG.permutation(points)) == pytest.approx(0.0, abs=1e-12)


def test_mmd_of_two_gaussians():
    """E k(x, y) for x ~ N(0, I), y ~ N(m, I) in the plane is c·exp(−|m|²/(2(h² + 2))) with c = h²/(h² + 2)."""
    h, shift = 0.7, np.array([0.5, 0.5])
    first, second = RNG.standard_normal((3000, 2)), RNG.standard_normal((3000, 2)) + shift
    factor = h**2 / (h**2 + 2.0)
    expected = 2.0 * factor * (1.0 - np.exp(-(shift @ shift) / (2.0 * (h**2 + 2.0))))
    assert squared_mmd(first, second, h) == pytest.approx(expected, rel=0.15)
    assert abs(squared_mmd(first, second - shift, h)) < 1e-3


def test_mmd_is_unbiased():
    values = [squared_mmd(*RNG.standard_normal((2, 50, 2)), 0.5) for _ in range(200)]
    assert abs(np.mean(values)) < 3.5 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0 < max(values)


def test_distance_to_a_curve():
    curve = np.stack([np.linspace(-1, 1, 2001), np.zeros(2001)], axis=1)
    points = np.array([[0.5, 0.25], [-0.3, 0.0], [2.0, 0.0]])
    np.testing.assert_allclose(distance_to_curve(points, curve), [0.25, 0.0, 1.0], atol=1e-12)
