"""What a network may predict, and the way from one prediction to another.

All four are linear in each other given x_t and ᾱ, so that a table of coefficients can hold the conversion.
"""

from __future__ import annotations

import numpy as np

from diffusion.errors import InputError
from diffusion.process import PREDICTION_TYPES


def x_start_coefficients(prediction_type: str, alpha_bar: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(u, v) with x_start = u · x_t + v · prediction, each of the shape of `alpha_bar`.

    epsilon: Ho et al. 2020, eq. 15. v_prediction: Salimans & Ho 2022, section 4, v = √ᾱ ε − √(1−ᾱ) x_0.
    score: Tweedie's formula, score = ∇ ln q(x_t) = −ε/√(1−ᾱ) (Luo 2022, eqs. 133 and 151).

    Raises:
        InputError: an unknown prediction type.
    """
    alpha_bar = np.asarray(alpha_bar, dtype=np.float64)
    signal, noise = np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar)
    if prediction_type == "epsilon":
        return 1.0 / signal, -noise / signal
    if prediction_type == "sample":
        return np.zeros_like(alpha_bar), np.ones_like(alpha_bar)
    if prediction_type == "v_prediction":
        return signal, -noise
    if prediction_type == "score":
        return 1.0 / signal, noise**2 / signal
    raise InputError(f"prediction_type is {prediction_type!r}, expected one of {', '.join(PREDICTION_TYPES)}")


def eps_coefficients(prediction_type: str, alpha_bar: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m, n) with eps = m · x_t + n · prediction, each of the shape of `alpha_bar`, ᾱ < 1.

    The same identities as in `x_start_coefficients`, solved for ε.

    Raises:
        InputError: an unknown prediction type.
    """
    alpha_bar = np.asarray(alpha_bar, dtype=np.float64)
    signal, noise = np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar)
    if prediction_type == "epsilon":
        return np.zeros_like(alpha_bar), np.ones_like(alpha_bar)
    if prediction_type == "sample":
        return 1.0 / noise, -signal / noise
    if prediction_type == "v_prediction":
        return noise, signal
    if prediction_type == "score":
        return np.zeros_like(alpha_bar), -noise
    raise InputError(f"prediction_type is {prediction_type!r}, expected one of {', '.join(PREDICTION_TYPES)}")


def to_x_start(prediction: np.ndarray, prediction_type: str, x_t: np.ndarray, alpha_bar: np.ndarray) -> np.ndarray:
    """x_start that a prediction stands for; `alpha_bar` broadcasts with x_t. Raises as `x_start_coefficients`."""
    u, v = x_start_coefficients(prediction_type, alpha_bar)
    return u * x_t + v * prediction


def from_x_start(x_start: np.ndarray, prediction_type: str, x_t: np.ndarray, alpha_bar: np.ndarray) -> np.ndarray:
    """The prediction that stands for `x_start`: the inverse of `to_x_start`."""
    if prediction_type == "sample":  # the only one that does not depend on x_t, so u = 0 and v = 1
        return np.array(x_start, dtype=np.float64)
    u, v = x_start_coefficients(prediction_type, alpha_bar)
    return (x_start - u * x_t) / v


def convert_prediction(
    prediction: np.ndarray, from_type: str, to_type: str, x_t: np.ndarray, alpha_bar: np.ndarray
) -> np.ndarray:
    """A prediction of one type as one of another type, at the same x_t.

    Args:
        prediction: what a network of `from_type` said, any shape.
        from_type, to_type: of `diffusion.process.PREDICTION_TYPES`.
        x_t: the state it was said of, same shape.
        alpha_bar: ᾱ of the timestep, in (0, 1), broadcasts with x_t.
    """
    return from_x_start(to_x_start(prediction, from_type, x_t, alpha_bar), to_type, x_t, alpha_bar)
