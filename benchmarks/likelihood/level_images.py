"""Images whose likelihood is wanted: on the gray levels of the network's data, in an order that never changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion.errors import InputError
from diffusion.process import SampleShape
from train.datasets import DataRequest, Part, load_part
from train.image_set import FULL, ImageSet, fewer_levels, to_levels


@dataclass(frozen=True, eq=False)
class LevelImages:
    """Images to measure.

    Attributes:
        name: for messages and reports.
        x_start: float32 [N, C, H, W], level k of `levels` as 2k/(levels − 1) − 1.
        levels: how many gray levels the likelihood is over.
        notes: what a user should know of how they were chosen, a line each.
    """

    name: str
    x_start: np.ndarray
    levels: int
    notes: tuple[str, ...] = ()


def load_level_images(request: DataRequest, shape: SampleShape, num: int | None = None) -> LevelImages:
    """Read the images that `request.split` names, cut as `train.run` cuts the same data.

    Args:
        request: the data, as `train.run` takes it; its split as in `train.datasets.load_part`, and its levels where
            the network's file does not say them, or to insist on 256.
        shape: of the network's samples, and their gray levels.
        num: the first so many of them; None for all.

    Raises:
        InputError: data that is not there or cannot be read, of another shape, with other levels, or too few.
    """
    path = Path(request.data)
    if path.is_file() and path.suffix not in (".npz", ".npy"):
        raise InputError(
            f"--data {request.data}: expected digits, mnist, an .npz file or an .npy file, a folder of images, or "
            "a Hugging Face data set"
        )
    part: Part = load_part(request)
    images = part.images
    if images.shape.chw != shape.chw:
        raise InputError(
            f"--data {request.data}: images are {list(images.shape.chw)}, the network's samples {list(shape.chw)} "
            "(channels, height, width); give the data that it was trained on"
        )
    if num is not None and not 1 <= num <= images.num_images:
        raise InputError(f"--num is {num}, expected 1 to {images.num_images}: {part.name} has so many images")
    levels = _agreed_levels(request, images, shape.levels)
    pixels = np.stack([images.read(index) for index in range(images.num_images if num is None else num)])
    if images.shape.levels == FULL and levels != FULL:
        pixels = _numbers(pixels, images, levels, request.data)
    x_start = pixels.astype(np.float64) * (2.0 / (levels - 1)) - 1.0
    return LevelImages(part.name, x_start.astype(np.float32), levels, images.notes)


def check_levels(asked: int, of_network: int) -> None:
    """Raises InputError if `--levels` contradicts what a network's file says; 256 may be a default there."""
    if of_network not in (FULL, asked):
        raise InputError(
            f"--levels is {asked}, but the network's file says that it was trained on {of_network} gray levels; "
            "leave the flag out"
        )


def _agreed_levels(request: DataRequest, images: ImageSet, of_network: int) -> int:
    """The number of levels that the flag, the network's file and the data do not contradict."""
    if request.levels is not None:
        check_levels(request.levels, of_network)
        return request.levels
    known = images.shape.levels
    if known != FULL and known != of_network:
        raise InputError(
            f"--data {request.data}: has {known} gray levels, the network's file says {of_network}"
            + (", or says nothing of them" if of_network == FULL else "")
            + f"; give --levels {known} if it was trained on this data"
        )
    fewer = fewer_levels(images) if of_network == FULL else None
    if fewer is not None:
        levels, nearly_black = fewer
        found = (
            f"no pixel is above {levels - 1} of 255" if nearly_black else f"takes {levels} evenly spaced values only"
        )
        raise InputError(
            f"--data {request.data}: {found}, but the network's file says {FULL} gray levels, or says nothing of them; "
            f"give --levels {levels} if the data has so many, or --levels {FULL} if it does have {FULL}"
        )
    return of_network


def _numbers(pixels: np.ndarray, images: ImageSet, levels: int, data: str) -> np.ndarray:
    try:
        return to_levels(pixels, levels, images.name)
    except InputError:
        raise InputError(
            f"--data {data}: a pixel is {int(pixels.max())}, but the network's data has {levels} gray levels, "
            f"0..{levels - 1} or spread over 0..255; give the data that it was trained on"
        ) from None
