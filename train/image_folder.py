"""Training images from a folder, searched recursively."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from diffusion.errors import InputError
from diffusion.process import SampleShape
from train.image_set import ImageSet
from train.image_size import MODES, check_mode, fit_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
# Up to this much, all images are decoded before training starts: faster, and a broken one is found at once.
MAX_DECODED_BYTES = 2**30


def load_image_folder(folder: Path, image_size: int | None = None, image_mode: str | None = None) -> ImageSet:
    """Every image under `folder`, sorted by path.

    All must have one size and one mode (L or RGB), unless `image_size` scales and crops them or `image_mode`
    converts them. The headers are read now; pixels too, where they fit into `MAX_DECODED_BYTES`.

    Raises:
        InputError: no images, an unreadable one, two sizes or two modes.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise InputError(
            f"{folder}: found no images, expected files ending in {' '.join(SUFFIXES)} (also in subfolders)"
        )
    first: tuple[tuple[int, int], str] | None = None  # (width, height), mode
    listing = hashlib.sha256()
    for path in paths:
        size, own_mode = _read_header(path)
        mode = check_mode(own_mode, image_mode, str(path))
        if first is None:
            first = size, mode
        if size != first[0] and image_size is None:
            raise InputError(
                f"{paths[0]} is {first[0][0]}×{first[0][1]} pixels, {path} is {size[0]}×{size[1]}; expected one size: "
                "scale and crop to N×N with --image-size N"
            )
        if mode != first[1]:
            raise InputError(
                f"{paths[0]} has mode {first[1]}, {path} has mode {mode}; expected one mode: "
                "convert with --image-mode L or RGB"
            )
        listing.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0{size}\0".encode())
    assert first is not None
    width, height = (image_size, image_size) if image_size is not None else first[0]
    mode = first[1]
    shape = SampleShape(MODES[mode], height, width)
    name = f"folder {folder}"
    if len(paths) * shape.num_elements <= MAX_DECODED_BYTES:
        pixels = np.empty((len(paths), *shape.chw), dtype=np.uint8)
        for index, path in enumerate(paths):
            pixels[index] = _decode(path, image_size, mode)
        return ImageSet.from_array(name, pixels)
    listing.update(f"{shape}{mode}".encode())
    return ImageSet(name, shape, len(paths), lambda index: _decode(paths[index], image_size, mode), listing.hexdigest())


def _read_header(path: Path) -> tuple[tuple[int, int], str]:
    try:
        with Image.open(path) as image:
            return image.size, image.mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from None


def _decode(path: Path, image_size: int | None, mode: str) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return fit_image(image, image_size, mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = "not an image, or truncated" if isinstance(error, UnidentifiedImageError) else str(error)
    return InputError(f"{path}: cannot be read as an image ({reason}); repair it or take it out of the folder")
