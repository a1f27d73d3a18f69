"""PIL images to uint8 arrays of one shape and mode."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from diffusion.errors import InputError
from runtime.pictures import picture_array

# As many as Pillow reads of one picture without complaint, twice over.
_MAX_PIXELS = 2**27


def fit_image(image: Image.Image, image_size: int | None, where: str) -> np.ndarray:
    """One image as uint8 [C, H, W].

    Args:
        image: of mode `L` (C = 1) or `RGB` (C = 3), as `runtime.pictures.read_picture` makes it.
        image_size: scale the shorter side to this and cut a square from the middle; None to keep the size.
        where: its name in an error.

    Raises:
        InputError: so narrow that scaled to `image_size` it would fill the memory.
    """
    if image_size is not None and image.size != (image_size, image_size):
        image = _scale_and_crop(image, image_size, where)
    return np.ascontiguousarray(picture_array(image).transpose(2, 0, 1))


def _scale_and_crop(image: Image.Image, image_size: int, where: str) -> Image.Image:
    width, height = image.size
    scale = image_size / min(width, height)
    scaled_size = tuple(max(image_size, math.floor(side * scale + 0.5)) for side in (width, height))
    if math.prod(scaled_size) > _MAX_PIXELS:
        raise InputError(
            f"{where}: is {width}×{height} pixels, too narrow to be scaled to {image_size}×{image_size}; take it out"
        )
    scaled = image.resize((scaled_size[0], scaled_size[1]), Image.Resampling.LANCZOS)
    left, top = (scaled.width - image_size) // 2, (scaled.height - image_size) // 2
    return scaled.crop((left, top, left + image_size, top + image_size))
