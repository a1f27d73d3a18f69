"""A set of training images: one shape, a count, a way to read each as integers, and its number of gray levels.

A pixel of `levels` gray levels is stored either as its number, 0 to levels − 1, or spread over 0 to 255. Taking one for
the other trains a network on nearly black images; and a likelihood on 256 levels is meaningless where only 17 occur.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffusion.errors import InputError
from diffusion.process import SampleShape
from train.labels import Labels

# Of a data set without a held-out part, one image in twenty is held out, and at most this many.
MAX_HELD_OUT = 1000
FULL = 256  # gray levels
# Data without a pixel above this was almost surely not meant as 0 to 255.
DARKEST = 63
# `fewer_levels` reports a number below 256 only if the pixels fall on its grid by chance with less than this.
_CHANCE = 1e-3
_MAX_FEWER = 64
_NUM_SAMPLED = 500  # images looked at of a set larger than `MAX_BYTES`
MAX_BYTES = 2**30


@dataclass(frozen=True)
class ImageSet:
    """Images of one shape.

    Attributes:
        name: for messages.
        shape: of every image, and its number of gray levels.
        num_images: how many.
        read: from an index to uint8 [C, H, W] with values 0 … levels − 1; safe to call from several threads.
        fingerprint: changes with the content, so that a run is not resumed on other data.
        notes: what a user should know of how they were chosen, a line each.
        labels: the class of each image; None where they were not asked for.
    """

    name: str
    shape: SampleShape
    num_images: int
    read: Callable[[int], np.ndarray]
    fingerprint: str
    notes: tuple[str, ...] = ()
    labels: Labels | None = None

    @classmethod
    def from_array(cls, name: str, pixels: np.ndarray, levels: int = 256, notes: tuple[str, ...] = ()) -> ImageSet:
        """Images that lie in memory.

        Args:
            name: for messages.
            pixels: uint8 [N, C, H, W], values 0 … levels − 1.
            levels: gray levels.
            notes: as the attribute.

        Raises:
            InputError: no images, or a value that is not a level.
        """
        if not pixels.size:
            raise InputError(f"{name}: holds no images, expected at least one of at least one pixel; choose other data")
        if int(pixels.max()) >= levels:
            raise InputError(f"{name}: a pixel is {int(pixels.max())}, expected 0 to {levels - 1}")
        pixels = np.ascontiguousarray(pixels, dtype=np.uint8)
        channels, height, width = pixels.shape[1:]
        return cls(
            name=name,
            shape=SampleShape(channels, height, width, levels),
            num_images=len(pixels),
            read=lambda index: np.asarray(pixels[index]),
            fingerprint=hashlib.sha256(pixels.data).hexdigest(),
            notes=notes,
        )

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageSet:
        """The images at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return ImageSet(
            name=self.name,
            shape=self.shape,
            num_images=len(chosen),
            read=lambda index: self.read(int(chosen[index])),
            fingerprint=hashlib.sha256(self.fingerprint.encode() + chosen.tobytes()).hexdigest(),
            notes=self.notes,
            labels=None if self.labels is None else self.labels.subset(chosen),
        )

    def with_labels(self, labels: Labels) -> ImageSet:
        """The same images with a class each. Raises InputError if there are not as many labels as images."""
        if len(labels.of_image) != self.num_images:
            raise InputError(
                f"{self.name}: holds {self.num_images} images and {len(labels.of_image)} labels, expected one for each"
            )
        return replace(self, labels=labels)

    def split(self, num_held_out: int | None) -> tuple[ImageSet, ImageSet | None]:
        """The set without its held-out images, and those, evenly spaced; None where there are none.

        Args:
            num_held_out: how many to hold out; None for one in twenty, at most `MAX_HELD_OUT`.

        Raises:
            InputError: nothing would be left to train on.
        """
        num = min(self.num_images // 20, MAX_HELD_OUT) if num_held_out is None else num_held_out
        if num >= self.num_images:
            raise InputError(
                f"{self.name}: --held-out {num} leaves nothing to train on, expected less than {self.num_images} images"
            )
        if num == 0:
            return self, None
        held_out = (np.arange(num) * self.num_images + self.num_images // 2) // num  # one in the middle of every part
        rest = np.setdiff1d(np.arange(self.num_images), held_out)
        return self.subset(rest), self.subset(held_out)

    def x_start(
        self, indices: Sequence[int] | np.ndarray, flip: Sequence[bool] | np.ndarray | None = None
    ) -> np.ndarray:
        """Images as the network sees them, float32 [n, C, H, W] in [−1, 1].

        Args:
            indices: of the images.
            flip: for each, whether left and right are exchanged.
        """
        x_start = np.empty((len(indices), *self.shape.chw), dtype=np.float32)
        for row, index in enumerate(indices):
            pixels = self.read(int(index))  # [C, H, W]
            x_start[row] = pixels[..., ::-1] if flip is not None and flip[row] else pixels
        x_start *= np.float32(2.0 / (self.shape.levels - 1))
        x_start -= np.float32(1.0)
        return x_start


def with_levels(images: ImageSet, levels: int) -> ImageSet:
    """The same images with `levels` gray levels, as numbers 0 to levels − 1.

    Args:
        images: of 256 levels; their pixels are numbers of levels, or spread over 0 to 255.
        levels: 2 to 256.

    Raises:
        InputError: a number out of range, pixels that are not on so many levels, or more of them than fit into memory.
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
    leveled = ImageSet.from_array(images.name, to_levels(pixels, levels, images.name), levels, images.notes)
    return replace(leveled, labels=images.labels)


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
    """The number of gray levels that the images seem to have, if it is surely below 256.

    Returns:
        The number, and whether they are stored as numbers of levels, nearly black; or None.
    """
    if images.shape.levels != FULL:
        return None
    is_small = images.num_images * images.shape.num_elements <= MAX_BYTES
    wanted = images.num_images if is_small else _NUM_SAMPLED
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
