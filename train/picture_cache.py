"""Decoded pictures kept between runs: 70,000 files take minutes to decode, one file of pixels a second to read."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL

from commands.whole_files import whole_file
from diffusion.errors import InputError
from runtime.array_files import UNREADABLE
from runtime.engines.cache_folder import user_cache_folder
from runtime.pictures import LOADER_VERSION

# Fewer are decoded in no noticeable time.
MIN_PICTURES = 2000
# Of all sets together; those least recently used go first.
MAX_BYTES = 2**32


def cache_key(paths: Sequence[Path], options: str) -> str:
    """What the decoded pixels depend on: every file's place, size and times, the options and the programs.

    The time of a file's last change of state, unlike that of its content, cannot be set back.

    Raises:
        InputError: a file that is not there any more.
    """
    digest = hashlib.sha256(f"{LOADER_VERSION} {PIL.__version__} {options}\n".encode())
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error}); take it out of the data") from None
        digest.update(
            f"{path.absolute()}\0{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} "
            f"{status.st_dev} {status.st_ino}\n".encode(errors="surrogateescape")
        )
    return digest.hexdigest()


def read_pixels(key: str) -> np.ndarray | None:
    """The pixels that `keep_pixels` wrote, uint8 [N, C, H, W]; None where there are none, or not as they were."""
    path = _path(key)
    if path is None:
        return None
    try:
        with path.open("rb") as stream:
            sha256 = stream.read(32)
            pixels = np.load(stream, allow_pickle=False)
    except UNREADABLE:
        return None
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.ndim != 4
        or pixels.dtype != np.uint8
        or hashlib.sha256(pixels.data).digest() != sha256
    ):
        return None
    with contextlib.suppress(OSError):
        path.touch()  # used just now
    return np.asarray(pixels)


def keep_pixels(key: str, pixels: np.ndarray) -> None:
    """Keep uint8 [N, C, H, W]. A full or a read-only disk is no reason not to train."""
    path = _path(key)
    if path is None:
        return
    with contextlib.suppress(InputError, OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with whole_file(path) as temporary, temporary.open("wb") as stream:
            stream.write(hashlib.sha256(pixels.data).digest())
            np.save(stream, pixels, allow_pickle=False)
        _remove_oldest(path)


def _path(key: str) -> Path | None:
    try:
        return user_cache_folder("pictures") / f"{key}.npy"
    except RuntimeError:  # a user without a home
        return None


def _remove_oldest(newest: Path) -> None:
    files = sorted(newest.parent.glob("[!.]*.npy"), key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > MAX_BYTES and file != newest:
            with contextlib.suppress(OSError):
                file.unlink()
