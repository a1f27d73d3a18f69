"""Training images from a folder, searched recursively; the decoded pixels are kept between runs.

70,000 files take minutes to decode; one file of pixels is read in a second.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from commands.progress import progress_bar
from commands.whole_files import whole_file
from diffusion.errors import InputError
from diffusion.process import SampleShape
from runtime.arrays import UNREADABLE
from runtime.engines.cache_folder import keep, read_kept, user_cache_folder
from runtime.pictures import (
    LOADER_VERSION,
    MAX_PIXELS,
    MAX_SCALED_PIXELS,
    MODES,
    check_mode,
    picture_array,
    read_picture,
    read_picture_header,
)
from train.folder_listing import FolderListing, list_pictures
from train.image_set import ImageSet
from train.labels import labels_of_folder

# Up to this much, all images are decoded before training starts: faster, and a broken one is found at once.
MAX_DECODED_BYTES = 2**30
_FINGERPRINTS = "fingerprints"
# Fewer are decoded quickly and are not kept.
MIN_PICTURES = 2000
# Of all kept sets together; the least recently used are removed first.
MAX_CACHE_BYTES = 2**32


def load_image_folder(
    folder: Path,
    image_size: int | None = None,
    image_mode: str | None = None,
    split: str | None = None,
    classes: bool = False,
) -> ImageSet:
    """Every image under `folder`, sorted by path.

    All must have one size and one mode (L or RGB), unless `image_size` scales and crops them or `image_mode`
    converts them. The headers are read now; pixels too, where they fit into `MAX_DECODED_BYTES`.

    Args:
        folder: with pictures, also in sub-folders.
        image_size: scale the shorter side to this and cut a square from the middle; None to keep the size.
        image_mode: `L` or `RGB`; None for the pictures' own.
        split: as in `train.folder_listing.list_pictures`.
        classes: whether sub-folders are classes, as `train.labels.labels_of_folder` says.

    Raises:
        InputError: no images, an unreadable one, two sizes or two modes.
    """
    listing = list_pictures(folder, split)
    if classes:
        labels = labels_of_folder(folder, listing.pictures)
        return _load(folder, listing, image_size, image_mode).with_labels(labels)
    return _load(folder, listing, image_size, image_mode)


def _load(folder: Path, listing: FolderListing, image_size: int | None, image_mode: str | None) -> ImageSet:
    paths, name = listing.pictures, f"folder {folder}"
    key = cache_key(paths, f"{image_size} {image_mode}") if len(paths) >= MIN_PICTURES else None
    kept = None if key is None else read_pixels(key)
    if kept is not None:
        return ImageSet.from_array(name, kept, notes=listing.notes)
    (width, height), mode = _common_size_and_mode(paths, image_size, image_mode)
    if image_size is not None:
        width = height = image_size
    shape = SampleShape(MODES[mode], height, width)

    def decode(index: int) -> np.ndarray:
        path = paths[index]
        pixels = fit_image(read_picture(path, str(path), mode, max_pixels(image_size)), image_size, str(path))
        if pixels.shape != shape.chw:
            raise InputError(f"{path}: is {pixels.shape[2]}×{pixels.shape[1]} pixels now; it changed while it was read")
        return pixels

    def decode_all() -> np.ndarray:
        pixels = np.empty((len(paths), *shape.chw), dtype=np.uint8)
        with progress_bar(len(paths), "decoding images", unit="image") as bar:
            for index in range(len(paths)):
                pixels[index] = decode(index)
                bar.update()
        return pixels

    if len(paths) * shape.num_elements <= MAX_DECODED_BYTES:
        pixels = decode_all()
        if key is not None:
            keep_pixels(key, pixels)
        return ImageSet.from_array(name, pixels, notes=listing.notes)
    fingerprint = _fingerprint(folder, paths, f"{shape}{mode}")
    return ImageSet(name, shape, len(paths), decode, fingerprint, listing.notes)


def _common_size_and_mode(
    paths: Sequence[Path], image_size: int | None, image_mode: str | None
) -> tuple[tuple[int, int], str]:
    first: tuple[tuple[int, int], str] | None = None  # (width, height), mode
    with progress_bar(len(paths), "reading headers", unit="image") as bar:
        for path in paths:
            size, own_mode = read_picture_header(path, str(path), max_pixels(image_size))
            mode = check_mode(own_mode, image_mode, str(path))
            if first is None:
                first = size, mode
            if size != first[0] and image_size is None:
                raise InputError(
                    f"{paths[0]} is {first[0][0]}×{first[0][1]} pixels, {path} is {size[0]}×{size[1]}; expected one "
                    "size: scale and crop to N×N with --image-size N"
                )
            if mode != first[1]:
                raise InputError(
                    f"{paths[0]} has mode {first[1]}, {path} has mode {mode}; expected one mode: "
                    "convert with --image-mode L or RGB"
                )
            bar.update()
    assert first is not None  # a listing has pictures
    return first


def _fingerprint(folder: Path, paths: Sequence[Path], options: str) -> str:
    """A hash of the names and bytes of all files; kept between runs until one of them changes."""
    key = cache_key(paths, f"{folder.absolute()} {options}")
    kept = read_kept(_FINGERPRINTS, key)
    if kept is not None and len(kept) == 64:
        return kept.decode("ascii", errors="replace")
    digest = hashlib.sha256(options.encode())
    with progress_bar(len(paths), "hashing images", unit="image") as bar:
        for path in paths:
            digest.update(f"{path.relative_to(folder)}\0".encode(errors="surrogateescape"))
            try:
                with path.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror or error}); take it out") from None
            bar.update()
    keep(_FINGERPRINTS, key, digest.hexdigest().encode())
    return digest.hexdigest()


def max_pixels(image_size: int | None) -> int:
    """How many a picture may have that is scaled to a size, or taken as it is."""
    return MAX_PIXELS if image_size is None else MAX_SCALED_PIXELS


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
    if math.prod(scaled_size) > MAX_SCALED_PIXELS:
        raise InputError(
            f"{where}: is {width}×{height} pixels, too narrow to be scaled to {image_size}×{image_size}; take it out"
        )
    scaled = image.resize((scaled_size[0], scaled_size[1]), Image.Resampling.LANCZOS)
    left, top = (scaled.width - image_size) // 2, (scaled.height - image_size) // 2
    return scaled.crop((left, top, left + image_size, top + image_size))


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
    """The pixels that `keep_pixels` wrote, uint8 [N, C, H, W]; None where there are none, or their checksum differs."""
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
        path.touch()  # marks it as recently used
    return np.asarray(pixels)


def keep_pixels(key: str, pixels: np.ndarray) -> None:
    """Keep uint8 [N, C, H, W]. Failure to write, as on a full or read-only disk, is ignored."""
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
        if total > MAX_CACHE_BYTES and file != newest:
            with contextlib.suppress(OSError):
                file.unlink()
