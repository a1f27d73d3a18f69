from __future__ import annotations

import numpy as np
import pytest

from diffusion.errors import InputError
from train.image_set import ImageSet


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
