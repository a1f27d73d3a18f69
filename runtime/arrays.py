"""Arrays of samples: room for them, and what comes from outside, read, taken by its value or refused."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib

import numpy as np

from commands.system import check_memory
from diffusion.errors import InputError

UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    RuntimeError,  # a password, or a way to compress, that `zipfile` does not know
)
"""What `numpy.load(…, allow_pickle=False)`, used as a context, and reading an archive's arrays raise for a file that is
cut, damaged or something else. NumPy goes by the content, not by the suffix."""


def check_states(states: object, expected: tuple[int, ...], name: str = "initial states") -> np.ndarray:
    """The states as float32, C-contiguous, of this machine's byte order.

    Whole numbers are refused: whether 0..255 means an image or a state cannot be seen from the array.

    Args:
        states: float16, float32 or float64 of the expected shape, in any layout and byte order.
        expected: (N, C, H, W).
        name: what to call them in an error.

    Raises:
        InputError: no array, another type or shape, a masked array, or a number that float32 does not hold.
    """
    if not isinstance(states, np.ndarray):
        raise InputError(f"{name}: found {type(states).__name__}, expected a NumPy array, float32 {list(expected)}")
    if isinstance(states, np.ma.MaskedArray):
        raise InputError(f"{name}: found a masked array, expected one whose every number counts; fill what is masked")
    if states.dtype.kind in "iu":
        raise InputError(
            f"{name}: found {states.dtype}, expected float32 states; if these are images, 0 to 255 and [N, H, W, C], "
            "make states of them with runtime.images.dequantize, and noise them with diffusion.gaussian.q_sample if "
            "the chain does not begin with data; if they are states, give them as float32"
        )
    if states.dtype.kind != "f":
        raise InputError(f"{name}: found {states.dtype}, expected float32")
    if states.shape != expected:
        raise InputError(f"{name} have shape {states.shape}, expected {expected}")
    with np.errstate(over="ignore"):
        converted = np.array(states, dtype=np.float32, order="C", subok=False, copy=None)
    if not np.isfinite(converted).all():
        place = tuple(int(each) for each in np.argwhere(~np.isfinite(converted))[0])
        raise InputError(f"{name}: {states[place]} at {list(place)}, expected finite numbers that float32 holds")
    return converted


def room_for(num: int, of_one: tuple[int, ...], dtype: type[np.generic] = np.float32) -> np.ndarray:
    """An array for `num` samples, not filled. Raises InputError where the memory does not hold it."""
    # numpy.empty takes what it is given only when it is filled, and then the program is killed.
    needed = num * math.prod(of_one) * np.dtype(dtype).itemsize
    check_memory(f"num is {num}, more than memory holds at once", needed, "draw fewer at a time")
    try:
        return np.empty((num, *of_one), dtype=dtype)
    except (MemoryError, ValueError) as error:  # ValueError: more than any array can have
        raise InputError(f"num is {num}, more than memory holds at once ({error}); draw fewer at a time") from None
