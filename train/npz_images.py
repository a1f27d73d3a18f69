"""Training images from NumPy files: sizes are checked before memory is taken, and nothing is unpickled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from commands.system import check_memory
from diffusion.errors import InputError
from runtime.array_files import ONLY, ArrayHeader, open_arrays
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
    with open_arrays(path, "write it again with numpy.savez") as arrays:
        if arrays.names == (ONLY,):
            raise arrays.refused("found a .npy file, expected a .npz file of another name")
        key = _choose(path, arrays.names)
        pixels = arrays.read(key, _check(f"{path}: array {key}"))
        images = ImageSet.from_array(str(path), _channels_first(pixels))
        if not classes:
            return images
        if _LABELS not in arrays.names:
            raise InputError(
                f"{path}: has no array {_LABELS!r} that says the class of each image, found "
                f"{', '.join(arrays.names[:5])}; add it, or leave out --classes"
            )
        return images.with_labels(Labels.from_numbers(arrays.read(_LABELS), f"{path}: array {_LABELS}"))


def load_npy(path: Path) -> ImageSet:
    """The images in `path`: uint8 [N, H, W] or [N, H, W, C].

    Raises:
        InputError: not a whole .npy file, another type or shape, or more than the memory that is free.
    """
    with open_arrays(path, "write it again with numpy.save") as arrays:
        if arrays.names != (ONLY,):
            raise arrays.refused("not a whole .npy file: found an archive")
        pixels = arrays.read(ONLY, _check(f"--data {path}"))
        return ImageSet.from_array(str(path), _channels_first(pixels))


def _check(where: str) -> Callable[[ArrayHeader], None]:
    def check(header: ArrayHeader) -> None:
        if header.dtype != np.uint8:
            raise InputError(f"{where} holds {header.dtype}, expected uint8 of gray levels 0 to 255; convert it")
        _check_shape(where, header.shape)
        check_memory(where, 2 * header.num_bytes, _INSTEAD)  # once as stored, once as channels first

    return check


def _check_shape(where: str, shape: tuple[int, ...]) -> None:
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise InputError(
            f"{where} has shape {list(shape)}, expected [N, H, W] or [N, H, W, C] with C of 1 or 3; reshape it"
        )
    if len(shape) == 3 and shape[2] in (1, 3):
        raise InputError(
            f"{where} has shape {list(shape)}, which may be one image of {shape[2]} channels or {shape[0]} gray images "
            f"{shape[2]} pixels wide; give [1, H, W, C] or [N, H, W, 1]"
        )


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    return pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)  # [N, C, H, W]


def _choose(path: Path, names: tuple[str, ...]) -> str:
    names = tuple(name for name in names if name != _LABELS) or names
    for key in _KEYS:
        if key in names:
            return key
    if len(names) != 1:
        found = ", ".join(names[:5]) or "nothing"
        raise InputError(
            f"{path}: found the arrays {found}; expected {' or '.join(_KEYS)}, or a single array; name one of them so"
        )
    return names[0]
