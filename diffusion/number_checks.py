"""What counts as a number in arguments from Python: NumPy's too, and never a bool, which Python takes for 0 or 1."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np


def is_whole(value: object) -> TypeGuard[int]:
    """Whether this is a whole number."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether this is a real number, NaN and the infinities among them."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
