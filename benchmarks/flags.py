"""Argparse types that several measurements share."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from diffusion.philox import MAX_SEED


def positive(text: str) -> int:
    """A whole number of at least 1. Raises ArgumentTypeError."""
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected at least 1")
    return value


def seed(text: str) -> int:
    """A seed of the noise. Raises ArgumentTypeError."""
    value = _whole(text)
    if not 0 <= value < MAX_SEED:
        raise argparse.ArgumentTypeError(f"found {text}, expected 0 to 2^64 - 1")
    return value


def picture(text: str) -> Path:
    """The name of a PNG file, known to be one before anything is measured. Raises ArgumentTypeError."""
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"found {text!r}, expected the name of a file that ends in .png")
    return path


def report_file(text: str) -> Path:
    """A file that can be written, tried before anything is measured and left as it was. Raises ArgumentTypeError."""
    path = Path(text)
    try:
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"found the folder {text!r}, expected the name of a file")
        folder = next(place for place in path.absolute().parents if place.exists())
        with tempfile.NamedTemporaryFile(dir=folder):
            return path
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be written ({error.strerror}); choose another file"
        ) from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise argparse.ArgumentTypeError(f"found {shown!r}, expected a whole number") from None
