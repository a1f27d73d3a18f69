from __future__ import annotations

import numpy as np
import pytest

from diffusion.errors import InputError
from train.batches import Batch, Batches, Draws
from train.image_set import ImageSet

T = 1000
PIXELS = np.random.default_rng(0).integers(0, 256, (11, 1, 4, 4), dtype=np.uint8)
IMAGES = ImageSet.from_array("test", PIXELS)


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


def make_batches(num_processes: int = 1, process_index: int = 0) -> Batches:
    return Batches(IMAGES, 6, 1000, 3, True, num_processes, process_index)


def assert_equal(one: Batch, other: Batch) -> None:
    np.testing.assert_array_equal(one.x_start, other.x_start)
    np.testing.assert_array_equal(one.timesteps, other.timesteps)
    np.testing.assert_array_equal(one.eps, other.eps)


@pytest.mark.parametrize("num_processes", [2, 3, 6])
def test_processes_share_the_batch_that_one_would_make(num_processes: int) -> None:
    whole = make_batches().batch(5)
    parts = [make_batches(num_processes, index).batch(5) for index in range(num_processes)]
    together = Batch(
        np.concatenate([part.x_start for part in parts]),
        np.concatenate([part.timesteps for part in parts]),
        np.concatenate([part.eps for part in parts]),
    )
    assert_equal(together, whole)
    assert whole.x_start.shape == (6, 1, 4, 4)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_batches_made_ahead_are_the_same_in_the_same_order(num_workers: int) -> None:
    expected = [make_batches().batch(step) for step in range(2, 9)]
    made = list(make_batches().iterate(2, 9, num_workers))
    assert len(made) == len(expected)
    for one, other in zip(made, expected, strict=True):
        assert_equal(one, other)


def test_leaving_early_ends_the_threads() -> None:
    for batch in make_batches().iterate(0, 10**9, 2):
        assert len(batch.timesteps) == 6
        break


def test_an_error_while_reading_reaches_the_caller() -> None:
    def read(index: int) -> np.ndarray:
        raise InputError("b.png: broken")

    broken = ImageSet("test", IMAGES.shape, 11, read, "")
    with pytest.raises(InputError, match=r"b\.png: broken"):
        next(Batches(broken, 6, 1000, 3).iterate(0, 4, 2))


def test_batch_size_must_divide() -> None:
    with pytest.raises(InputError, match="--batch-size is 6, expected a multiple of the 4 processes"):
        make_batches(num_processes=4)
