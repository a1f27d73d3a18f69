from __future__ import annotations

import numpy as np
import pytest

from diffusion.errors import InputError
from train.batches import Batch, Batches
from train.image_set import ImageSet

PIXELS = np.random.default_rng(0).integers(0, 256, (11, 1, 4, 4), dtype=np.uint8)
IMAGES = ImageSet.from_array("test", PIXELS)


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
