"""Images whose likelihood is wanted: on the gray levels of the network's data, in an order that never changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion.errors import InputError
from diffusion.process import SampleShape
from train.digits import LEVELS, load_digits_split
from train.image_set import ImageSet
from train.npz_images import load_npz

SPLITS = ("test", "train", "all")


@dataclass(frozen=True, eq=False)
class LevelImages:
    """Images to measure.

    Attributes:
        name: for messages and reports.
        x_start: float32 [N, C, H, W], level k of `levels` as 2k/(levels − 1) − 1.
    """

    name: str
    x_start: np.ndarray


def load_level_images(
    data: str, split: str, shape: SampleShape, num: int | None = None, held_out: int | None = None
) -> LevelImages:
    """Read the images that `split` names, cut as `train.run` cuts the same data.

    Args:
        data: `digits`, an .npz file (key `arr_0`, `images` or the only one) or an .npy file; uint8 [N, H, W] or
            [N, H, W, C] with the values 0..levels−1.
        split: `test` (held out), `train` or `all`.
        shape: of the network's samples, and their gray levels.
        num: the first so many of them; None for all.
        held_out: how many of a file's images are held out; None for what `train.run` does by itself.

    Raises:
        InputError: data that is not there or cannot be read, of another shape, with other levels, or too few.
    """
    name = f"{data}, {split}"
    images = _digits(split, held_out) if data == "digits" else _cut(_from_file(Path(data)), split, held_out)
    if images.shape.chw != shape.chw:
        raise InputError(
            f"--data {data}: images are {list(images.shape.chw)}, the network's samples {list(shape.chw)} "
            "(channels, height, width); give the data that it was trained on"
        )
    if num is not None and not 1 <= num <= images.num_images:
        raise InputError(f"--num is {num}, expected 1 to {images.num_images}: {name} has so many images")
    pixels = np.stack([images.read(index) for index in range(images.num_images if num is None else num)])
    if int(pixels.max()) >= shape.levels:
        raise InputError(
            f"--data {data}: a pixel is {int(pixels.max())}, but the network's data has {shape.levels} gray levels, "
            f"0..{shape.levels - 1}; give the data that it was trained on"
        )
    x_start = pixels.astype(np.float64) * (2.0 / (shape.levels - 1)) - 1.0
    return LevelImages(name, x_start.astype(np.float32))


def _digits(split: str, held_out: int | None) -> ImageSet:
    if held_out is not None:
        raise InputError("--held-out does not apply to digits, whose split is fixed; leave it out")
    digits = load_digits_split()
    parts = {"train": digits.train_images, "test": digits.held_out_images}
    pixels = np.concatenate([*parts.values()]) if split == "all" else parts[split]
    return ImageSet.from_array("digits", pixels, LEVELS)


def _from_file(path: Path) -> ImageSet:
    if path.suffix not in (".npz", ".npy"):
        raise InputError(f"--data {path}: expected digits, an .npz file or an .npy file")
    if not path.is_file():
        raise InputError(f"--data {path}: no such file")
    if path.suffix == ".npz":
        return load_npz(path)
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"--data {path}: not a whole .npy file ({error}); write it again with numpy.save") from None
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        raise InputError(
            f"--data {path}: found {pixels.dtype} {list(pixels.shape)}, expected uint8 [N, H, W] or [N, H, W, C]; "
            "the likelihood is that of gray levels"
        )
    return ImageSet.from_array(str(path), pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2))


def _cut(images: ImageSet, split: str, held_out: int | None) -> ImageSet:
    if split == "all":
        return images
    train, test = images.split(held_out)
    if split == "train":
        return train
    if test is None:
        raise InputError(f"{images.name}: holds no images out for --split test; give --split all")
    return test
