"""From float32 NCHW in [−1, 1] to pictures: quantization, grids, strips."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from diffusion.errors import InputError

DRAWABLE_CHANNELS = (1, 3)
# Small images are enlarged by whole factors until a tile is about this wide, so that a grid can be looked at.
_TILE_PIXELS = 64
_GROUND = 128  # mid-gray
_GAP = 2  # pixels between tiles


def quantize(x: np.ndarray) -> np.ndarray:
    """Images as bytes: round(255·clamp(x/2 + ½, 0, 1)), half to even.

    Args:
        x: float32 [N, C, H, W] in [−1, 1]; what lies outside is clamped.

    Returns:
        uint8 [N, H, W, C].
    """
    scaled = 255.0 * np.clip(x.astype(np.float64) / 2.0 + 0.5, 0.0, 1.0)
    return np.ascontiguousarray(np.rint(scaled).astype(np.uint8).transpose(0, 2, 3, 1))


def dequantize(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, C] as float32 [N, C, H, W] in [−1, 1]. Raises InputError for another type, of another scale."""
    if images.dtype != np.uint8:
        raise InputError(f"images are {images.dtype}, expected uint8, 0 to 255")
    return np.ascontiguousarray((images.astype(np.float32) / 127.5 - 1.0).transpose(0, 3, 1, 2))


def check_drawable(channels: int, wanted_format: str) -> None:
    """Raises InputError if samples of this many channels are no pictures."""
    if channels not in DRAWABLE_CHANNELS:
        raise InputError(
            f"--format {wanted_format}: samples have {channels} channels, expected 1 (gray) or 3 (RGB); "
            "use --format npy or npz"
        )


def picture(image: np.ndarray) -> Image.Image:
    """One uint8 [H, W, 1 or 3] as a PIL image."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def by_rows(images: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, int]:
    """Tiles for `draw_grid`, with the images of each row in a row of their own and blank tiles where it ends early.

    Args:
        images: uint8 [N, H, W, C].
        rows: int [N], the row of each image.

    Returns:
        The tiles, and how many make a row.
    """
    kinds, places = np.unique(rows, return_inverse=True)
    columns = int(np.bincount(places).max())
    tiles = np.full((len(kinds), columns, *images.shape[1:]), _GROUND, dtype=np.uint8)
    for row in range(len(kinds)):
        of_row = images[places == row]
        tiles[row, : len(of_row)] = of_row
    return tiles.reshape(-1, *images.shape[1:]), columns


def draw_grid(images: np.ndarray, columns: int | None = None) -> Image.Image:
    """Tiles in reading order, on a mid-gray ground; the square that fits them unless `columns` is given.

    Args:
        images: uint8 [N, H, W, 1 or 3], N ≥ 1.
        columns: tiles per row.
    """
    num, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(num))
    rows = -(-num // columns)
    zoom = max(1, _TILE_PIXELS // max(height, width))
    tiles = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    step_y, step_x = height * zoom + _GAP, width * zoom + _GAP
    sheet = np.full((rows * step_y + _GAP, columns * step_x + _GAP, channels), _GROUND, dtype=np.uint8)
    for place, tile in enumerate(tiles):
        top, left = place // columns * step_y + _GAP, place % columns * step_x + _GAP
        sheet[top : top + height * zoom, left : left + width * zoom] = tile
    return picture(sheet)
