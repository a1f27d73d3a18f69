"""PIL images to uint8 arrays of one shape and mode."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from diffusion.errors import InputError

MODES = {"L": 1, "RGB": 3}


def fit_image(image: Image.Image, image_size: int | None, mode: str) -> np.ndarray:
    """One image as uint8 [C, H, W].

    Args:
        image: any PIL image.
        image_size: scale the shorter side to this and cut a square from the middle; None to keep the size.
        mode: `L` (C = 1) or `RGB` (C = 3), converted to if need be.
    """
    if image.mode != mode:
        image = image.convert(mode)
    if image_size is not None and image.size != (image_size, image_size):
        image = _scale_and_crop(image, image_size)
    pixels = np.asarray(image, dtype=np.uint8)  # [H, W] or [H, W, C]
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def check_mode(mode: str, wanted: str | None, where: str) -> str:
    """The mode an image is trained in: the wanted one, or its own where that is `L` or `RGB`.

    Raises:
        InputError: the image's mode is another and none was asked for.
    """
    if wanted is not None:
        return wanted
    if mode not in MODES:
        raise InputError(f"{where}: its mode is {mode}, expected L (gray) or RGB; convert with --image-mode L or RGB")
    return mode


def _scale_and_crop(image: Image.Image, image_size: int) -> Image.Image:
    width, height = image.size
    scale = image_size / min(width, height)
    scaled = image.resize(
        (max(image_size, math.floor(width * scale + 0.5)), max(image_size, math.floor(height * scale + 0.5))),
        Image.Resampling.LANCZOS,
    )
    left, top = (scaled.width - image_size) // 2, (scaled.height - image_size) // 2
    return scaled.crop((left, top, left + image_size, top + image_size))
