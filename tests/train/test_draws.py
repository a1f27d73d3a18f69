from __future__ import annotations

import numpy as np

from train.draws import Draws

T = 1000


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    one, other = Draws(5), Draws(5)
    for position in (3, 70, 3):  # `one` has a past that `other` has not
        drawn = one.image(position, T, (1, 3, 3))
    again = other.image(3, T, (1, 3, 3))
    assert (drawn.timestep, drawn.flip) == (again.timestep, again.flip)
    np.testing.assert_array_equal(drawn.eps, again.eps)
    assert not np.array_equal(Draws(6).image(3, T, (1, 3, 3)).eps, again.eps)
    assert not np.array_equal(other.image(4, T, (1, 3, 3)).eps, again.eps)


def test_an_epoch_goes_through_every_image_once() -> None:
    draws = Draws(0)
    epochs = [[draws.image_index(epoch * 37 + place, 37) for place in range(37)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(37))
    assert epochs[0] != epochs[1] != epochs[2]
    assert [Draws(0).image_index(position, 37) for position in range(37)] == epochs[0]


def test_an_order_does_not_remember_the_epoch_before() -> None:
    draws = Draws(0)
    late = [draws.image_index(100 + place, 10) for place in range(10)]
    assert [Draws(0).image_index(100 + place, 10) for place in reversed(range(10))] == late[::-1]


def test_distributions() -> None:
    draws, num = Draws(1), 4000
    drawn = [draws.image(position, T, (1, 4, 4)) for position in range(num)]
    timesteps = np.array([one.timestep for one in drawn])
    eps = np.stack([one.eps for one in drawn])
    assert timesteps.min() >= 0
    assert timesteps.max() < T
    # Means and variances within five standard errors.
    assert abs(timesteps.mean() - (T - 1) / 2) < 5 * T / np.sqrt(12 * num)
    assert abs(np.mean([one.flip for one in drawn]) - 0.5) < 5 * 0.5 / np.sqrt(num)
    assert abs(eps.mean()) < 5 / np.sqrt(eps.size)
    assert abs(eps.var() - 1.0) < 5 * np.sqrt(2 / eps.size)
    # Neighbouring positions are independent.
    assert abs((eps[1:] * eps[:-1]).mean()) < 5 / np.sqrt(eps.size)


def test_largest_seed() -> None:
    assert np.isfinite(Draws(2**64 - 1).image(2**50, T, (1, 2, 2)).eps).all()
