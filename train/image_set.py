"""A set of training images: one shape, a count, and a way to read each as integers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from diffusion.errors import InputError
from diffusion.process import SampleShape

# Of a data set without a held-out part, one image in twenty is held out, and at most this many.
MAX_HELD_OUT = 1000


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
    """

    name: str
    shape: SampleShape
    num_images: int
    read: Callable[[int], np.ndarray]
    fingerprint: str
    notes: tuple[str, ...] = ()

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
            raise InputError(f"{name}: holds no images, expected at least one of at least one pixel")
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
        )

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
