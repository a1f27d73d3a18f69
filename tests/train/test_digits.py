from __future__ import annotations

import numpy as np

from train.digits import load_digits_split


def test_parts_are_disjoint_and_complete() -> None:
    from sklearn.datasets import load_digits

    split = load_digits_split()
    assert split.train_images.shape == (1545, 1, 8, 8)
    assert split.held_out_images.shape == (252, 1, 8, 8)
    assert split.train_images.dtype == np.uint8
    both = np.concatenate([split.train_images, split.held_out_images]).reshape(1797, -1)
    whole = load_digits().images.astype(np.uint8).reshape(1797, -1)
    # As multisets of images, the two parts are the whole: none is lost and none is in both.
    np.testing.assert_array_equal(both[np.lexsort(both.T)], whole[np.lexsort(whole.T)])


def test_every_digit_is_in_both_parts() -> None:
    split = load_digits_split()
    assert np.bincount(split.train_labels, minlength=10).min() >= 150
    assert np.bincount(split.held_out_labels, minlength=10).min() >= 24


def test_values_are_the_seventeen_levels() -> None:
    split = load_digits_split()
    np.testing.assert_array_equal(np.unique(split.train_images), np.arange(17))
