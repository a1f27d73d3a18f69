"""How many gray levels data has: what is seen in it, and what is taken as it is said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.errors import InputError
from train.gray_levels import fewer_levels, to_levels, with_levels
from train.image_set import ImageSet


def images_of(pixels: np.ndarray) -> ImageSet:
    return ImageSet.from_array("test", pixels.astype(np.uint8).reshape(-1, 1, 8, 8))


@pytest.mark.parametrize("shift", [-0.499, 0.0, 0.499])  # rounded down, to the nearest, up
@pytest.mark.parametrize("levels", [2, 4, 11, 16, 17, 32, 52, 64])
def test_numbers_spread_over_0_to_255_are_found_and_read(levels: int, shift: float) -> None:
    numbers = np.random.default_rng(0).integers(0, levels, 64 * 20)
    spread = np.clip(np.rint(numbers * (255 / (levels - 1)) + shift), 0, 255)
    images = images_of(spread)
    assert fewer_levels(images) == (levels, False)
    read = with_levels(images, levels)
    assert read.shape.levels == levels
    np.testing.assert_array_equal(np.stack([read.read(index) for index in range(20)]).ravel(), numbers)


@pytest.mark.parametrize("levels", [2, 17, 64])
def test_numbers_themselves_are_nearly_black(levels: int) -> None:
    numbers = np.concatenate([np.random.default_rng(0).integers(0, levels, 64 * 20 - 1), [levels - 1]])
    images = images_of(numbers)
    assert fewer_levels(images) == (levels, True)
    x_start = with_levels(images, levels).x_start([0]).ravel()
    np.testing.assert_allclose(x_start, numbers[:64] * 2 / (levels - 1) - 1, atol=2e-7)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(64, 255))
def test_ordinary_pictures_are_never_suspected(seed: int, number: int, brightest: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, brightest + 1, 64 * number)
    pixels[0] = brightest
    assert fewer_levels(images_of(pixels)) is None


def test_one_value_says_nothing() -> None:
    for value in (0, 16, 255):
        assert fewer_levels(images_of(np.full(64, value))) is None


def test_other_numbers_are_refused() -> None:
    images = images_of(np.arange(64) * 4)
    with pytest.raises(InputError, match="a pixel is 252, which is none of 17 gray levels, .*--levels, 256"):
        with_levels(images, 17)
    with pytest.raises(InputError, match="--levels is 1, expected 2 to 256"):
        with_levels(images, 1)
    assert with_levels(images, 256) is images
    pixels = np.arange(17, dtype=np.uint8)
    assert to_levels(pixels, 17, "test") is pixels
