"""One way from a picture file to 8-bit gray or RGB: for training, for `--x-init` and for measurements.

docs/pictures.md has the table of what becomes of what. What is not in it is refused; nothing is guessed.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from diffusion.errors import InputError
from diffusion.regular_files import open_regular

# Part of the key of everything that is derived from pictures: raise it with every change of a pixel.
LOADER_VERSION = 1
MODES = {"L": 1, "RGB": 3}
MAX_PIXELS = 2**25
"""Of one picture: 33 megapixels, of which Pillow holds four bytes each, and as much again while it converts them.
A file of some kilobytes may claim any number."""
MAX_SCALED_PIXELS = 2**27
"""Of one that is scaled down, as photographs are."""
_REPAIR = "repair it, or take it out"
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
# The content decides, not the suffix; formats outside this list (PostScript, icons, FITS …) are never tried.
_PLUGINS = (
    BmpImagePlugin, GifImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, PpmImagePlugin, TiffImagePlugin,
    WebPImagePlugin,
)  # fmt: skip
_FORMATS = sorted(
    name for name, (factory, _) in Image.OPEN.items() if factory.__module__ in {p.__name__ for p in _PLUGINS}
)
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_ON_REQUEST = (*_ALPHA, "CMYK", "YCbCr")
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_ORIENTATION = 0x0112
# EXIF: where the first row and the first column of what is stored belong, and the way back.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def is_picture_name(path: Path) -> bool:
    """Whether the suffix, in whatever case, is one of `SUFFIXES`."""
    return path.suffix.lower() in SUFFIXES


def read_picture_header(
    source: Path | BinaryIO, where: str, max_pixels: int = MAX_PIXELS
) -> tuple[tuple[int, int], str]:
    """Size and mode of a picture, without its pixels.

    Args:
        source: a file's path, or its bytes as a stream.
        where: its name in an error.
        max_pixels: that it may have.

    Returns:
        (width, height) as it is looked at, and `L` or `RGB`; or another mode, of which `L` or `RGB` is made only
        on request, because it means a choice: what is behind transparent pixels, or which red a printer's is.

    Raises:
        InputError: not a picture, an animated one, or one whose pixels have no agreed meaning.
    """
    try:
        with _opened(source, where, max_pixels) as image:
            mode = _natural_mode(image, where)
            width, height = image.size
            # Pillow reports a TIFF's size as it is looked at, every other format's as it is stored.
            if image.format != "TIFF" and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8):
                width, height = height, width
            return (width, height), mode
    except InputError:
        raise
    except Exception as error:  # Pillow's parsers raise whatever foreign bytes make them raise
        raise _unreadable(where, error) from None


def read_picture(
    source: Path | BinaryIO, where: str, mode: str | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """A picture as it is looked at, as a PIL image of mode `L` or `RGB`.

    Args:
        source: a file's path, or its bytes as a stream.
        where: its name in an error.
        mode: `L` or `RGB` to convert to; None for its own.
        max_pixels: that it may have.

    Raises:
        InputError: as `read_picture_header`; a truncated file; or a mode that is neither, and none was asked for.
    """
    try:
        with _opened(source, where, max_pixels) as image:
            own = _natural_mode(image, where)
            image.load()
            # Read after the pixels: Pillow turns a TIFF itself, and then takes the tag away.
            turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
            plain = _plain(image, where)
            upright = plain if turn is None else plain.transpose(turn)
            return upright.convert(check_mode(own, mode, where))
    except InputError:
        raise
    except Exception as error:  # as above
        raise _unreadable(where, error) from None


def picture_array(image: Image.Image) -> np.ndarray:
    """A PIL image of mode `L` or `RGB` as uint8 [H, W, C]."""
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def check_mode(own: str, wanted: str | None, where: str) -> str:
    """The mode to convert to: the wanted one, or the picture's own where that is `L` or `RGB`.

    Raises:
        InputError: the picture's mode is another and none was asked for.
    """
    if wanted is not None:
        return wanted
    if own not in MODES:
        raise InputError(f"{where}: its mode is {own}, expected L (gray) or RGB; convert with --image-mode L or RGB")
    return own


@contextlib.contextmanager
def _opened(source: Path | BinaryIO, where: str, max_pixels: int) -> Iterator[Image.Image]:
    """Only the header is read. Raises InputError for no regular file, or too many pixels."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_regular(source, _REPAIR)) if isinstance(source, Path) else source
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a bound of our own follows
            image = stack.enter_context(Image.open(file, formats=_FORMATS))
        if image.width * image.height > max_pixels:
            raise InputError(
                f"{where}: is {image.width}×{image.height} pixels, expected at most {max_pixels:,} in all; scale it "
                "down, or take it out"
            )
        yield image


def _natural_mode(image: Image.Image, where: str) -> str:
    if min(image.size) < 1:
        raise InputError(f"{where}: is {image.width}×{image.height} pixels, expected at least one; take it out")
    frames = getattr(image, "n_frames", 1)
    # In a camera's multi-picture JPEG the first is the photograph, the others are previews of it.
    if frames > 1 and image.format != "MPO":
        raise InputError(
            f"{where}: holds {frames} frames, expected one picture; save the one that is meant as a file of its own"
        )
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        if image.format == "TIFF" and _tiff_tag(image, _TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
            raise _meaningless(where, "16-bit gray with 0 for white")
        if "transparency" in image.info:
            raise _meaningless(where, "16-bit gray with a transparent value")
        return "L"
    if mode == "I":
        raise _meaningless(where, "integers without an agreed white")
    if mode == "F":
        raise _meaningless(where, "floating-point numbers, whose black and white no file says")
    if _is_transparent(image):
        transparent = image.info.get("transparency")
        if mode == "RGB" and (not isinstance(transparent, tuple) or max(transparent) > 255):
            raise _meaningless(where, "16-bit color with a transparent value")
        return mode if mode in _ALPHA else f"{mode} with transparency"
    if mode in ("1", "L"):
        return "L"
    if mode in ("P", "RGB", "RGBX"):
        return "RGB"
    if mode in _ON_REQUEST:
        return mode
    raise _meaningless(where, f"pixels of mode {mode}")


def _plain(image: Image.Image, where: str) -> Image.Image:
    """`L` or `RGB` without transparency, 8 bits, as stored (not yet upright)."""
    mode = image.mode
    if mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)  # [H, W]
        bits = _tiff_tag(image, _TIFF_BITS) if image.format == "TIFF" else 16
        if values.min() < 0 or values.max() >= 1 << bits:
            raise _meaningless(where, f"values outside {bits} bits")
        # The high byte, which is also all that Pillow keeps of 16-bit color.
        return Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    if _is_transparent(image):
        visible = image.convert("RGBA")
        white = Image.new("RGBA", visible.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, visible).convert("RGB")
    return image.convert("L" if mode in ("1", "L") else "RGB")


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in _ALPHA or "transparency" in image.info


def _tiff_tag(image: Image.Image, tag: int) -> int:
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    value = tags.get(tag, 16)
    return int(value[0] if isinstance(value, tuple) else value)


def _meaningless(where: str, what: str) -> InputError:
    return InputError(f"{where}: holds {what}, expected 8-bit or 16-bit gray or color; convert it to 8 bits first")


def _unreadable(where: str, error: Exception) -> InputError:
    reason = (
        "not a picture, or truncated" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
    )
    return InputError(f"{where}: cannot be read as an image ({reason or type(error).__name__}); {_REPAIR}")
