"""The noise: its formula, its numbering of draws and elements, its bits, and that it is normal and independent."""

import hashlib
import math
from statistics import NormalDist

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.normal import (
    BINOMIAL,
    LIKELIHOOD,
    draw_number,
    noise_words,
    normal,
    normal_batch,
    normal_pair,
)
from diffusion.philox import philox

SEED, SAMPLE_INDEX = 7, 2**33 + 5
# Of 10^7 normals of that seed and sample index at timestep 999. What changes it breaks every seed ever published.
SHA256 = "e9bbf4a484ad90b801540d142a373039780accd3cffed3bf17a5929488f4799b"


def exact_pair(w_even, w_odd):
    u = ((w_even >> np.uint32(9)).astype(np.float64) + 0.5) * 2.0**-23
    r, theta = np.sqrt(-2 * np.log(u)), 2 * np.pi * 2.0**-32 * w_odd.astype(np.float64)
    return r * np.cos(theta), r * np.sin(theta)


@pytest.fixture(scope="module")
def many():
    return normal((10_000_000,), SEED, SAMPLE_INDEX, draw_number(999))


def test_bits_are_pinned(many):
    assert many.dtype == np.float32
    assert hashlib.sha256(many.tobytes()).hexdigest() == SHA256


def test_every_radius_is_within_2e_6_of_the_formula():
    w_even = np.arange(2**23, dtype=np.uint32) << np.uint32(9)
    z_even, z_odd = normal_pair(w_even, np.zeros_like(w_even))  # angle 0: z = (r, 0)
    assert np.abs(z_even - exact_pair(w_even, np.zeros_like(w_even))[0]).max() < 1e-6
    assert not z_odd.any()
    assert z_even.max() == np.float32(math.sqrt(2 * 24 * math.log(2)))


def test_within_2e_6_of_the_formula(many):
    words = noise_words(10_000_000, SEED, SAMPLE_INDEX, draw_number(999))
    z_even, z_odd = exact_pair(words[0::2], words[1::2])
    assert np.abs(many[0::2] - z_even).max() < 2e-6
    assert np.abs(many[1::2] - z_odd).max() < 2e-6


def test_low_bits_of_the_even_word_do_not_count():
    w = np.uint32([0, 511, 512, 2**32 - 1])
    radius = normal_pair(w, np.zeros_like(w))[0]
    assert radius[0] == radius[1] > radius[2] > radius[3] > 0


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (1, 3, 3), (2, 4, 8), (3, 1, 2)])
def test_element_takes_its_word_of_its_counter(shape):
    seed, sample_index, draw = 2**40 + 3, 2**35 + 9, draw_number(17)
    z = normal(shape, seed, sample_index, draw)
    channels, height, width = shape
    key = np.uint32([seed % 2**32, seed >> 32])
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                e = (c * height + y) * width + x
                counter = np.uint32([e // 4, draw, sample_index % 2**32, sample_index >> 32])
                words = philox(counter, key)
                pair = normal_pair(words[e % 4 // 2 * 2 :][:1], words[e % 4 // 2 * 2 + 1 :][:1])
                assert z[c, y, x] == pair[e % 2][0]


def test_a_longer_sample_begins_with_the_shorter():
    longer = normal((5, 5, 5), 1, 2, 3)
    np.testing.assert_array_equal(longer.ravel()[:27], normal((3, 3, 3), 1, 2, 3).ravel())


def test_noise_depends_on_seed_and_index_alone_not_on_the_batch():
    seeds, indices, draws = [1, 2**64 - 1, 1, 2**32 + 1], [0, 5, 2**64 - 1, 2**32], [0, 3, 3, draw_number(999)]
    batch = normal_batch((3, 5, 7), seeds, indices, draws)
    for n in range(4):
        alone = normal((3, 5, 7), seeds[n], indices[n], draws[n])
        np.testing.assert_array_equal(batch[n], alone)
    np.testing.assert_array_equal(normal_batch((3, 5, 7), seeds[::-1], indices[::-1], draws[::-1]), batch[::-1])


def test_high_words_of_seed_and_index_count():
    reference = normal((4, 4, 4), 1, 1, 1)
    for seed, index in ((1 + 2**32, 1), (1, 1 + 2**32), (1 + 2**63, 1)):
        assert not np.array_equal(normal((4, 4, 4), seed, index, 1), reference)


def test_a_large_batch_equals_its_parts():
    # More counters than are made at once, with samples across the border.
    batch = normal_batch((3, 64, 64), [9] * 7, range(7), draw_number(None))
    np.testing.assert_array_equal(batch[6], normal((3, 64, 64), 9, 6, draw_number(None)))
    np.testing.assert_array_equal(batch[5], normal((3, 64, 64), 9, 5, draw_number(None)))


def test_draw_numbers():
    assert draw_number(None) == 0
    assert draw_number(0) == 1
    assert draw_number(999) == 1000
    assert draw_number(999, LIKELIHOOD) == (1 << 28) + 1000
    assert draw_number(999, BINOMIAL, repeat=255) == (2 << 28) + (255 << 20) + 1000
    assert draw_number(np.int64(2**20 - 2)) == 2**20 - 1


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"timestep": -1}, "timestep is -1"),
        ({"timestep": 2**20 - 1}, "timestep is 1048575"),
        ({"timestep": 0, "stream": 4}, "stream is 4"),
        ({"timestep": 0, "repeat": 256}, "repeat is 256"),
        ({"timestep": 0, "repeat": -1}, "repeat is -1"),
    ],
)
def test_draw_number_refuses(arguments, found):
    with pytest.raises(InputError, match=found):
        draw_number(**arguments)


@pytest.mark.parametrize(
    ("seeds", "indices", "found"),
    [
        ([-1], [0], "seed is -1"),
        ([2**64], [0], "seed is 18446744073709551616"),
        ([0], [-1], "sample index is -1"),
        ([0], [2**64], "sample index is 18446744073709551616"),
        ([0, 1], [0], "2 seeds, 1 sample indices"),
    ],
)
def test_what_no_counter_can_hold_is_refused(seeds, indices, found):
    with pytest.raises(InputError, match=found):
        normal_batch((1, 2, 2), seeds, indices, 0)


def test_moments(many):
    n = len(many)
    z = many.astype(np.float64)
    # Standard errors of mean, variance, skewness and kurtosis of n normal numbers; 4.5 of them is 7 in a million.
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs((z**power).mean() - moment) < 4.5 * math.sqrt(variance / n)


def test_distribution_by_chi_squared(many):
    bins = 1000
    edges = [NormalDist().inv_cdf(i / bins) for i in range(1, bins)]
    counts = np.bincount(np.searchsorted(edges, many), minlength=bins)
    expected = len(many) / bins
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_squared - (bins - 1)) < 4.5 * math.sqrt(2 * (bins - 1))


def test_neighbours_are_uncorrelated():
    shape = (3, 128, 128)
    z = normal_batch(shape, [1, 1, 2, 1], [0, 1, 0, 0], [5, 5, 5, 6]).reshape(4, -1).astype(np.float64)
    n = z.shape[1]
    for lag in (1, 2, 3, 4, 128):  # a pair, a counter, a row of the image
        assert abs((z[0, :-lag] * z[0, lag:]).mean()) < 4.5 / math.sqrt(n - lag)
    for other in (1, 2, 3):  # next sample, next seed, next draw
        assert abs((z[0] * z[other]).mean()) < 4.5 / math.sqrt(n)
        assert abs((z[0] ** 2 * z[other] ** 2).mean() - 1) < 4.5 * math.sqrt(8 / n)
