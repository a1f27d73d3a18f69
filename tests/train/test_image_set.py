"""How many gray levels data has: what is seen in it, and what is taken as it is said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.errors import InputError
from train.image_set import ImageSet, fewer_levels, to_levels, with_levels


def make_set(num: int = 50, levels: int = 256) -> ImageSet:
    pixels = np.arange(num * 12, dtype=np.int64) % levels
    return ImageSet.from_array("test", pixels.astype(np.uint8).reshape(num, 3, 2, 2), levels)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_span_minus_one_to_one(levels: int) -> None:
    pixels = np.arange(levels, dtype=np.uint8).reshape(-1, 1, 1, 1)
    x_start = ImageSet.from_array("test", pixels, levels).x_start(range(levels))
    assert x_start.dtype == np.float32
    np.testing.assert_allclose(x_start.ravel(), np.linspace(-1.0, 1.0, levels), atol=2e-7)


def test_every_level_survives_the_way_back_to_uint8() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1)
    x_start = ImageSet.from_array("test", pixels).x_start(range(256))
    back = np.rint(255.0 * np.clip(x_start / 2.0 + 0.5, 0.0, 1.0)).astype(np.uint8)
    np.testing.assert_array_equal(back, pixels)


def test_flip_exchanges_left_and_right_only() -> None:
    images = make_set()
    straight = images.x_start([3, 4])
    flipped = images.x_start([3, 4], [True, False])
    np.testing.assert_array_equal(flipped[0], straight[0, :, :, ::-1])
    np.testing.assert_array_equal(flipped[1], straight[1])


@pytest.mark.parametrize("num_held_out", [1, 7, 49])
def test_split_is_disjoint_and_complete(num_held_out: int) -> None:
    images = make_set()
    train, held_out = images.split(num_held_out)
    assert held_out is not None
    assert (train.num_images, held_out.num_images) == (50 - num_held_out, num_held_out)
    firsts = [part.read(index).tobytes() for part in (train, held_out) for index in range(part.num_images)]
    assert len(set(firsts)) == len({images.read(index).tobytes() for index in range(50)})


def test_split_defaults_to_one_in_twenty() -> None:
    held_out = make_set().split(None)[1]
    assert held_out is not None
    assert held_out.num_images == 2
    assert make_set(19).split(None)[1] is None
    assert make_set().split(0)[1] is None


def test_split_leaves_something_to_train_on() -> None:
    with pytest.raises(InputError, match="--held-out 50 leaves nothing"):
        make_set().split(50)


def test_values_above_the_levels_are_refused() -> None:
    with pytest.raises(InputError, match="a pixel is 17, expected 0 to 16"):
        ImageSet.from_array("test", np.full((1, 1, 2, 2), 17, np.uint8), 17)


def test_fingerprint_follows_the_content() -> None:
    one = make_set()
    changed = np.stack([one.read(index) for index in range(50)])
    changed[7, 0, 0, 0] ^= 1
    assert make_set().fingerprint == one.fingerprint
    assert ImageSet.from_array("test", changed).fingerprint != one.fingerprint
    assert one.subset([1, 2]).fingerprint != one.subset([2, 1]).fingerprint


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
