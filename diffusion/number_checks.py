"""What counts as a number in Python arguments and in JSON: it is taken by its value, or refused.

NumPy scalars of any width are numbers; they become Python's, which do not overflow. Refused are bools, which Python
takes for 0 or 1, strings, complex numbers, fractions, arrays in place of a number, and masked arrays.
"""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import numpy as np

from diffusion.errors import InputError


def is_whole(value: object) -> TypeGuard[int]:
    """Whether this is a whole number."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether this is a real number, NaN and the infinities among them."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def is_finite_number(value: object) -> TypeGuard[float]:
    """Whether this is a real number that float64 holds."""
    if not is_number(value):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def whole_number(value: object, name: str, lowest: int | None = None, highest: int | None = None) -> int:
    """The value as Python's integer.

    Args:
        value: of any type.
        name: what to call it in an error.
        lowest, highest: that are allowed; None for no limit.

    Raises:
        InputError: not a whole number, or outside its range.
    """
    expected = "a whole number"
    if lowest is not None:
        expected += f" of at least {lowest}" if highest is None else f" from {lowest} to {highest}"
    if not is_whole(value):
        raise InputError(f"{name} is {shown(value)}, expected {expected}")
    number = int(value)
    if (lowest is not None and number < lowest) or (highest is not None and number > highest):
        raise InputError(f"{name} is {shown(number)}, expected {expected}")
    return number


def real_number(value: object, name: str) -> float:
    """The value as Python's float, which may be NaN or infinite only where it was.

    Raises:
        InputError: not a number, or too large for float64.
    """
    if not is_number(value):
        raise InputError(f"{name} is {shown(value)}, expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number) and number != value:
        raise InputError(f"{name} is {shown(value)}, too large for float64")
    return number


def real_array(values: object, name: str) -> np.ndarray:
    """The values as a float64 array of the same shape, a copy.

    Args:
        values: a number, nested lists of numbers, or an array.
        name: what to call them in an error.

    Raises:
        InputError: an entry that is not a number.
    """
    array = values if isinstance(values, np.ndarray) else _as_objects(values)
    if array.dtype.kind == "O" and not isinstance(array, np.ma.MaskedArray):
        numbers = [real_number(each, f"{name}: an entry") for each in array.flat]
        return np.array(numbers, dtype=np.float64).reshape(array.shape)
    if array.dtype.kind not in "iuf" or isinstance(array, np.ma.MaskedArray):
        kind = "masked " if isinstance(array, np.ma.MaskedArray) else ""
        raise InputError(f"{name}: found a {kind}array of {array.dtype}, expected real numbers")
    with np.errstate(over="ignore"):
        converted = np.array(array, dtype=np.float64, subok=False)
    if (np.isinf(converted) & np.isfinite(array)).any():
        raise InputError(f"{name}: holds numbers too large for float64")
    return converted


def whole_numbers(values: object) -> np.ndarray | None:
    """Whole numbers of any size as an object array of Python integers, of the same shape; None for anything else."""
    if isinstance(values, np.ma.MaskedArray):
        return None
    array = _as_objects(values)
    if not all(map(is_whole, array.flat)):
        return None
    return np.array([int(each) for each in array.flat], dtype=object).reshape(array.shape)


def yes_or_no(value: object, name: str) -> bool:
    """The value as a bool. Raises InputError unless it is True or False: the string "false" would count as true."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} is {shown(value)}, expected True or False")
    return bool(value)


def shown(value: object) -> str:
    """The value for a message, in one short line."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python does not print integers of more than 4,300 digits
        return "a number of thousands of digits"
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deeply"
    return text if len(text) <= 60 else text[:57] + "..."


def _as_objects(values: object) -> np.ndarray[Any, np.dtype[np.object_]]:
    try:
        return np.array(values, dtype=object)
    except ValueError:  # rows of different lengths
        return np.array(None, dtype=object)
