"""How many gray levels data has, and what data says against a number of them.

A pixel of `levels` gray levels is stored either as its number, 0 to levels − 1, or spread over 0 to 255. What is stored
one way and taken the other trains a network on nearly black images, and a likelihood on 256 levels of which 17 occur is
none.
"""

from __future__ import annotations

import numpy as np

from diffusion.errors import InputError
from train.image_set import ImageSet

FULL = 256
# Data without a pixel above this is as good as never meant to be 0 to 255.
DARKEST = 63
# A coincidence that no data set will ever be.
_CHANCE = 1e-3
_MAX_FEWER = 64
_LOOKED_AT = 500  # of images that do not lie in memory
MAX_BYTES = 2**30


def with_levels(images: ImageSet, levels: int) -> ImageSet:
    """The same images with `levels` gray levels, as numbers 0 to levels − 1.

    Args:
        images: of 256 levels; their pixels are numbers of levels, or spread over 0 to 255.
        levels: 2 to 256.

    Raises:
        InputError: a number that is none, pixels that are not on so many levels, or more of them than fit into memory.
    """
    if not 2 <= levels <= FULL:
        raise InputError(f"--levels is {levels}, expected 2 to {FULL}")
    if levels == images.shape.levels:
        return images
    if images.shape.levels != FULL:
        raise InputError(f"--levels is {levels}, but {images.name} has {images.shape.levels}; leave the flag out")
    if images.num_images * images.shape.num_elements > MAX_BYTES:
        raise InputError(f"{images.name}: --levels needs data that fits into {MAX_BYTES / 2**30:.0f} GiB; leave it out")
    pixels = np.stack([images.read(index) for index in range(images.num_images)])
    return ImageSet.from_array(images.name, to_levels(pixels, levels, images.name), levels, images.notes)


def to_levels(pixels: np.ndarray, levels: int, name: str) -> np.ndarray:
    """uint8 pixels, all that there are, as numbers of levels.

    Raises:
        InputError: they are neither 0 to levels − 1 nor on so many levels spread over 0 to 255.
    """
    if int(pixels.max()) < levels:
        return pixels
    present = np.flatnonzero(np.bincount(pixels.ravel(), minlength=FULL))
    off = ~_on_grid(present, levels)
    if off.any():
        raise InputError(
            f"{name}: a pixel is {int(present[off][-1])}, which is none of {levels} gray levels, neither as a number "
            f"from 0 to {levels - 1} nor spread over 0 to 255; give the true number with --levels, {FULL} for ordinary "
            "pictures"
        )
    return np.rint(np.arange(FULL) * ((levels - 1) / 255)).astype(np.uint8)[pixels]


def fewer_levels(images: ImageSet) -> tuple[int, bool] | None:
    """How many gray levels the images seem to have, if that is surely fewer than 256.

    Returns:
        The number, and whether they are stored as numbers of levels, nearly black; or None.
    """
    if images.shape.levels != FULL:
        return None
    all_of_them = images.num_images * images.shape.num_elements <= MAX_BYTES
    wanted = images.num_images if all_of_them else _LOOKED_AT
    chosen = np.unique(np.linspace(0, images.num_images - 1, wanted).astype(np.int64))
    counts = np.zeros(FULL, dtype=np.int64)
    for index in chosen:
        counts += np.bincount(images.read(int(index)).ravel(), minlength=FULL)
    present = np.flatnonzero(counts)
    if len(present) < 2:
        return None
    if present[-1] <= DARKEST:
        return int(present[-1]) + 1, True
    for levels in range(2, _MAX_FEWER + 1):
        if _on_grid(present, levels).all():
            return (levels, False) if (levels / (FULL / 2)) ** len(present) < _CHANCE else None
    return None


def _on_grid(values: np.ndarray, levels: int) -> np.ndarray:
    place = values * ((levels - 1) / 255)
    return np.abs(np.rint(place) * (255 / (levels - 1)) - values) < 1.0 - 1e-9
