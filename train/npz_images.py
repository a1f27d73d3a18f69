"""Training images from NumPy files: sizes are checked before memory is taken, and nothing is unpickled."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from commands.system import check_memory
from diffusion.errors import InputError
from runtime.arrays import UNREADABLE
from train.image_set import ImageSet
from train.labels import Labels

_KEYS = ("arr_0", "images")
_LABELS = "labels"
_INSTEAD = "give a folder of images instead, which is read piece by piece"


def load_npz(path: Path, classes: bool = False) -> ImageSet:
    """The images in `path`: uint8 [N, H, W] or [N, H, W, C] under `arr_0`, `images` or the only key.

    Args:
        path: the file.
        classes: read the class of each image too, whole numbers [N] under `labels`.

    Raises:
        InputError: not an archive, no such array, another type or shape, a truncated file, more than the
            memory that is free, or not as many labels as images.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            member = _choose(path, names)
            pixels = _read(path, archive, member)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UNREADABLE as error:
        raise InputError(f"{path}: not a whole .npz file ({error}); write it again with numpy.savez") from None
    images = ImageSet.from_array(str(path), pixels)
    return images.with_labels(_read_labels(path)) if classes else images


def _read_labels(path: Path) -> Labels:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if _LABELS not in arrays.files:
                raise InputError(
                    f"{path}: has no array {_LABELS!r} that says the class of each image, found "
                    f"{', '.join(arrays.files)}; add it, or leave out --classes"
                )
            numbers = arrays[_LABELS]
    except UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: array {_LABELS} cannot be read ({error}); write it again") from None
    return Labels.from_numbers(numbers, f"{path}: array {_LABELS}")


def load_npy(path: Path) -> ImageSet:
    """The images in `path`: uint8 [N, H, W] or [N, H, W, C].

    Raises:
        InputError: not a whole .npy file, another type or shape, or more than the memory that is free.
    """
    try:
        with path.open("rb") as file:
            is_array = file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX
        if not is_array:  # NumPy would take it for an archive, or for a pickle, by its first bytes
            raise ValueError("does not begin as one")
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        raise InputError(f"--data {path}: not a whole .npy file ({error}); write it again with numpy.save") from None
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        found = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else "an archive"
        raise InputError(f"--data {path}: found {found}, expected uint8 [N, H, W] or [N, H, W, C] of gray levels")
    _check_shape(str(path), pixels.shape)
    check_memory(str(path), 2 * pixels.nbytes, _INSTEAD)  # once as stored, once as channels first
    return ImageSet.from_array(str(path), _channels_first(pixels))


def _check_shape(where: str, shape: tuple[int, ...]) -> None:
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise InputError(f"{where} has shape {list(shape)}, expected [N, H, W] or [N, H, W, C] with C of 1 or 3")
    if len(shape) == 3 and shape[2] in (1, 3):
        raise InputError(
            f"{where} has shape {list(shape)}, which may be one image of {shape[2]} channels or {shape[0]} gray images "
            f"{shape[2]} pixels wide; give [1, H, W, C] or [N, H, W, 1]"
        )


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    return pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)  # [N, C, H, W]


def _choose(path: Path, names: list[str]) -> str:
    names = [name for name in names if name != f"{_LABELS}.npy"] or names
    for key in _KEYS:
        if f"{key}.npy" in names:
            return f"{key}.npy"
    if len(names) != 1:
        found = ", ".join(name.removesuffix(".npy") for name in names) or "nothing"
        raise InputError(f"{path}: found the arrays {found}; expected {' or '.join(_KEYS)}, or a single array")
    return names[0]


def _read(path: Path, archive: zipfile.ZipFile, member: str) -> np.ndarray:
    key = member.removesuffix(".npy")
    with archive.open(member) as stream:
        try:
            version = np.lib.format.read_magic(stream)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, is_fortran, dtype = read_header(stream)
        except ValueError as error:
            raise InputError(f"{path}: array {key} has no readable header ({error}); write it again") from None
        if dtype != np.uint8:
            raise InputError(f"{path}: array {key} holds {dtype}, expected uint8")
        _check_shape(f"{path}: array {key}", shape)
        num_bytes = int(np.prod(shape, dtype=object))
        declared = archive.getinfo(member).file_size - stream.tell()
        if declared != num_bytes:
            raise InputError(
                f"{path}: array {key} has {declared} bytes of pixels, its shape {list(shape)} needs {num_bytes}"
            )
        check_memory(f"{path}: array {key}", 2 * num_bytes, _INSTEAD)  # once as stored, once as channels first
        values = np.frombuffer(stream.read(num_bytes), dtype=np.uint8)
    if len(values) != num_bytes:
        raise InputError(f"{path}: array {key} ends after {len(values)} of {num_bytes} bytes; write it again")
    pixels = values.reshape(shape, order="F" if is_fortran else "C")
    return _channels_first(pixels)
