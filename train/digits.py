"""scikit-learn's bundled handwritten digits: 1,797 real images of 8×8 pixels with 17 gray levels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVELS = 17
_HOLD_OUT_EVERY = 7


@dataclass(frozen=True)
class DigitsSplit:
    """The digits, cut into a part to train on and a part held out. The cut is the same everywhere and always.

    Attributes:
        train_images, held_out_images: uint8 [N, 1, 8, 8], values 0 … 16.
        train_labels, held_out_labels: int64 [N], the digits 0 … 9.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    held_out_images: np.ndarray
    held_out_labels: np.ndarray


def load_digits_split() -> DigitsSplit:
    """1,545 digits to train on and 252 held out: of each class every seventh, starting with its seventh.

    Counting needs no random generator, so the split cannot change with a library's version. The images
    come grouped by writer, so both parts have all writers as well as all classes.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)[:, None]  # [N, 1, 8, 8]
    labels = digits.target.astype(np.int64)  # [N]
    held_out = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        of_class = np.flatnonzero(labels == label)
        held_out[of_class[_HOLD_OUT_EVERY - 1 :: _HOLD_OUT_EVERY]] = True
    return DigitsSplit(images[~held_out], labels[~held_out], images[held_out], labels[held_out])
