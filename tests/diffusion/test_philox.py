"""Philox4x32-10 against the known answers of Random123, the library of Salmon et al. 2011."""

import numpy as np
import pytest

from diffusion.philox import philox, philox_planes


def words(text):
    return np.array([int(word, 16) for word in text.split()], dtype=np.uint32)


KNOWN_ANSWERS = [
    ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    np.testing.assert_array_equal(philox(words(counter), words(key)), words(expected))


def test_counters_and_keys_broadcast():
    counters = np.stack([words(counter) for counter, _, _ in KNOWN_ANSWERS])[:, None]  # [3, 1, 4]
    keys = np.stack([words(key) for _, key, _ in KNOWN_ANSWERS])  # [3, 2]
    result = philox(counters, keys)
    assert result.shape == (3, 3, 4)
    assert result.dtype == np.uint32
    for i, (_, _, expected) in enumerate(KNOWN_ANSWERS):
        np.testing.assert_array_equal(result[i, i], words(expected))


def test_planes_are_the_columns():
    rng = np.random.default_rng(0)
    counters = rng.integers(0, 2**32, (100, 4), dtype=np.uint32)
    planes = philox_planes(*counters.T, 0xA4093822, 0x299F31D0)
    np.testing.assert_array_equal(np.stack(planes, axis=1), philox(counters, words("a4093822 299f31d0")))


def test_every_word_of_counter_and_key_matters():
    reference = philox(np.zeros(4, np.uint32), np.zeros(2, np.uint32))
    for place in range(6):
        changed = np.zeros(6, np.uint32)
        changed[place] = 1 << 31
        result = philox(changed[:4], changed[4:])
        flipped = sum(int(a ^ b).bit_count() for a, b in zip(result, reference, strict=True))
        assert 40 <= flipped <= 88  # of 128 bits, 64 expected
