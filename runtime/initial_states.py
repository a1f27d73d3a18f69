"""What a chain begins with instead of noise: states from a file, or images noised to a timestep."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from diffusion.errors import InputError
from diffusion.gaussian import q_sample
from diffusion.normal import draw_number, normal_batch
from diffusion.process import Process, SampleShape
from diffusion.regular_files import open_regular
from runtime.array_files import ArrayHeader, open_arrays
from runtime.arrays import check_states, room_for
from runtime.chain.interface import check_seed_range
from runtime.images import dequantize
from runtime.pictures import MODES, is_picture_name, picture_array, read_picture, read_picture_header


def load_initial_states(
    path: Path, process: Process, timestep: int | None, num: int | None, seed: int, start: int
) -> tuple[np.ndarray, str]:
    """Read `--x-init`: float32 arrays are states as they are; images, uint8, are noised to `timestep`.

    An image x_0 becomes x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε (Ho et al. 2020, eq. 4) with the noise that
    would have been x_T: what is known as image-to-image (Meng et al. 2022). A file with one entry serves
    all `num` samples.

    Args:
        path: .npy or .npz (its only array, or `arr_0`): float32 [M, C, H, W] or uint8 [M, H, W, C]; or a picture,
            read as docs/pictures.md says.
        process: of the network.
        timestep: training timestep that the chain begins at; None if it begins with data, as an inversion does.
        num: samples asked for; None for as many as the file holds.
        seed, start: of the run.

    Returns:
        float32 [num, C, H, W], and the file's SHA-256.

    Raises:
        InputError: a file that cannot be read, of another shape or type, not finite, or with a number of entries
            that is neither 1 nor `num`.
    """
    shape = process.sample

    def check(header: ArrayHeader) -> None:
        if header.dtype == np.uint8:
            expected: tuple[int, ...] = (shape.height, shape.width, shape.channels)
        elif header.dtype.kind == "f":
            expected = shape.chw
        else:
            raise InputError(f"{path}: holds {header.dtype}, expected float32 states or uint8 images; convert them")
        if len(header.shape) != 4 or header.shape[1:] != expected or header.shape[0] == 0:
            layout = "N, " + ", ".join(map(str, expected))
            raise InputError(
                f"{path}: holds {header.dtype} of shape {list(header.shape)}, expected [{layout}]; give such a file"
            )
        if num is not None and header.shape[0] not in (1, num):
            raise InputError(
                f"{path}: holds {header.shape[0]} states, expected 1 or {num}; give --num {header.shape[0]}"
            )

    array = _read_picture(path, shape) if is_picture_name(path) else _read_array(path, "--x-init", check)
    with open_regular(path, "--x-init takes .npy, .npz or a picture") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if array.dtype == np.uint8 and not is_picture_name(path) and 0 < int(array.max()) < shape.levels < 256:
        raise InputError(
            f"{path}: its brightest pixel is {int(array.max())} of 255, nearly black, and the network's data has "
            f"{shape.levels} gray levels; spread them over 0 to 255, or give float32 states"
        )
    if array.dtype != np.uint8:
        array = check_states(array, array.shape, str(path))
    if num is None:
        num = len(array)
        check_seed_range(seed, start, num)
    images = room_for(num, shape.chw)
    images[:] = array if array.dtype != np.uint8 else dequantize(array)
    if array.dtype != np.uint8 or timestep is None:
        return images, sha256
    indices = list(range(start, start + num))
    eps = normal_batch(shape.chw, [seed] * num, indices, draw_number(None))
    return q_sample(process.schedule, images, timestep, eps).astype(np.float32), sha256


def load_conditions(given: Sequence[tuple[str, str]], process: Process) -> dict[str, object]:
    """Read what `--condition` gives: a number, or a file of float32 values or of uint8 images.

    Args:
        given: names, and what stands behind them.
        process: of the network, which says what is an image: a condition [C, H, W].

    Returns:
        values by name, for `runtime.conditions.given_conditions`, which checks them.

    Raises:
        InputError: a name that is given twice, a file that cannot be read, or images of another shape.
    """
    shapes = {condition.name: condition.shape for condition in process.conditions}
    labels = {condition.name for condition in process.conditions if condition.is_label}
    values: dict[str, object] = {}
    for name, text in given:
        if name in values:
            raise InputError(f"--condition {name} was given twice; give one of them")
        shape = shapes.get(name, ())
        if not shape:
            try:
                values[name] = int(text) if name in labels else float(text)
            except ValueError:
                wanted = "the number of a class" if name in labels else "a number"
                raise InputError(f"--condition {name} is {text!r}, expected {wanted}") from None
            continue
        array = _read_array(Path(text), "--condition", partial(_check_condition, text, shape))
        values[name] = dequantize(array) if array.dtype == np.uint8 and len(shape) == 3 else array
    return values


def _check_condition(text: str, shape: tuple[int, ...], header: ArrayHeader) -> None:
    """Before it is read. Raises InputError."""
    as_image = header.dtype == np.uint8 and len(shape) == 3
    expected = (shape[1], shape[2], shape[0]) if as_image else shape
    # One for all samples may come without a first axis.
    if header.shape[1:] != expected and (as_image or header.shape != expected):
        layout = ", ".join(map(str, expected))
        raise InputError(
            f"{text}: holds {header.dtype} of shape {list(header.shape)}, expected [N, {layout}]; give such a file"
        )


def _read_array(path: Path, flag: str, check: Callable[[ArrayHeader], None]) -> np.ndarray:
    taken = ".npy, .npz or a picture" if flag == "--x-init" else ".npy or .npz"
    with open_arrays(path, f"{flag} takes {taken}") as arrays:
        names = arrays.names
        if "arr_0" not in names and len(names) != 1:
            shown = ", ".join(names[:5]) or "nothing"
            raise arrays.refused(f"holds the arrays {shown}, expected one, or one named arr_0")
        return arrays.read("arr_0" if "arr_0" in names else names[0], check)


def _read_picture(path: Path, shape: SampleShape) -> np.ndarray:
    mode = {number: name for name, number in MODES.items()}.get(shape.channels)
    if mode is None:
        raise InputError(f"{path}: is a picture, but the network draws {shape.channels} channels; give .npy or .npz")
    size, own = read_picture_header(path, str(path))
    if mode == "L" and not own.startswith(("L", "1")):
        raise InputError(f"{path}: its mode is {own}, but the network draws gray; make a gray picture of it first")
    if size != (shape.width, shape.height):
        raise InputError(
            f"{path}: is {size[0]}×{size[1]} pixels, expected {shape.width}×{shape.height}; scale it first"
        )
    return picture_array(read_picture(path, str(path), mode))[None]
