"""Quantization and grids."""

import numpy as np
import pytest

from diffusion.errors import InputError
from runtime.images import check_drawable, dequantize, draw_grid, quantize


def test_quantization_clamps_and_rounds_half_to_even():
    x = np.array([-7.0, -1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 1, -1)
    np.testing.assert_array_equal(quantize(x).ravel(), [0, 0, 128, 255, 255])
    assert quantize(np.zeros((2, 3, 4, 5), np.float32)).shape == (2, 4, 5, 3)
    # The float64 x for which 255·(x/2 + ½) is k + ½ exactly go to the even neighbor.
    k = np.arange(255)
    halves = 2.0 * ((k + 0.5) / 255.0 - 0.5)
    exact = 255.0 * (halves / 2.0 + 0.5) == k + 0.5
    assert exact.sum() > 100
    np.testing.assert_array_equal(quantize(halves[exact].reshape(1, 1, 1, -1)).ravel(), (k + k % 2)[exact])


def test_every_byte_survives_the_way_there_and_back():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(quantize(dequantize(images)), images)


def test_grid_shows_every_image_in_reading_order():
    images = np.stack([np.full((64, 64, 1), value, np.uint8) for value in (10, 20, 30)])
    sheet = np.asarray(draw_grid(images))
    assert sheet.shape == (2 * 66 + 2, 2 * 66 + 2)
    assert (sheet[30, 30], sheet[30, 100], sheet[100, 30], sheet[100, 100]) == (10, 20, 30, 128)


def test_small_images_are_enlarged_by_whole_factors():
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    sheet = np.asarray(draw_grid(image))
    np.testing.assert_array_equal(sheet[2:-2:8, 2:-2:8], image[0, :, :, 0])


def test_what_is_no_picture_is_refused():
    check_drawable(1, "grid")
    check_drawable(3, "png")
    with pytest.raises(InputError, match="have 2 channels.*--format npy"):
        check_drawable(2, "grid")
