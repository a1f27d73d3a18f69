"""Binary data: the heartbeat of Sohl-Dickstein et al. 2015, and scikit-learn's digits in black and white."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HEARTBEAT_LENGTH, HEARTBEAT_PERIOD = 20, 5
_WHITE_FROM = 8  # of the 17 gray levels 0..16


@dataclass(frozen=True, eq=False)
class BinaryData:
    """Samples to train on, and what is known of their distribution.

    Attributes:
        name: for messages.
        train, test: uint8 [N, C, H, W] of 0 and 1.
        entropy_bits: of the distribution, where `train` is all there is and each row as probable; else None.
        unit: of the bound: bits per sequence or image.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    entropy_bits: float | None
    unit: str


def heartbeats() -> BinaryData:
    """A 1 in every fifth of 20 bins, at five equally probable phases (Sohl-Dickstein et al. 2015, section 3.1.2)."""
    bins, phases = np.arange(HEARTBEAT_LENGTH), np.arange(HEARTBEAT_PERIOD)
    patterns = (bins % HEARTBEAT_PERIOD == phases[:, None]).astype(np.uint8)[:, None, None]  # [5, 1, 1, 20]
    return BinaryData("heartbeat", patterns, patterns, float(np.log2(HEARTBEAT_PERIOD)), "sequence")


def binary_digits() -> BinaryData:
    """1,545 handwritten digits of 8×8 pixels to train on and 252 held out; a pixel is 1 from half intensity on."""
    from train.digits import load_digits_split

    split = load_digits_split()
    train, test = ((images >= _WHITE_FROM).astype(np.uint8) for images in (split.train_images, split.held_out_images))
    return BinaryData("digits", train, test, None, "image")


BINARY_DATA = {"heartbeat": heartbeats, "digits": binary_digits}
