"""The last step's likelihood: how probable a pixel's gray level is under a Gaussian over the real line.

A pixel has `levels` gray levels, spread evenly over [−1, 1]. Each owns the bin half a step to either side of it; the
outer bins reach to infinity, so that the bins' probabilities add up to 1 (Ho et al. 2020, eq. 13).
"""

from __future__ import annotations

import numpy as np

from diffusion.errors import InputError
from diffusion.normal_interval import log_interval_probability

# Of a step between levels: float32 pixels are off by 1e-7, pixels of another number of levels by a good part of a step.
_OFF_LEVEL = 1e-2


def level_of(x_start: np.ndarray, levels: int) -> np.ndarray:
    """The gray level 0..levels−1 of every element, float64 of whole numbers.

    Args:
        x_start: any shape, in [−1, 1].
        levels: 256 for 8-bit images, 17 for scikit-learn's digits.

    Raises:
        InputError: a value that is none of the levels.
    """
    place = (np.asarray(x_start, np.float64) + 1.0) * (0.5 * (levels - 1))
    level = np.rint(place)
    wrong = ~((np.abs(place - level) <= _OFF_LEVEL) & (level >= 0) & (level <= levels - 1))
    if wrong.any():
        found = np.asarray(x_start)[wrong].flat[0]
        raise InputError(
            f"x_start holds {found:.6g}, expected one of {levels} levels evenly spaced over [-1, 1]; "
            "quantize the images, or give their true number of levels"
        )
    return level


def log_probability_of_level(
    x_start: np.ndarray, mean: np.ndarray, log_variance: np.ndarray, levels: int
) -> np.ndarray:
    """ln of the probability of each element's bin under N(mean, variance) (Ho et al. 2020, eq. 13).

    Args:
        x_start: data, on the levels.
        mean, log_variance: float64, broadcast with x_start.
        levels: number of bins.

    Returns:
        float64, shape of x_start, at most 0; no floor, however far the bin is from the mean.

    Raises:
        InputError: a value that is none of the levels.
    """
    level = level_of(x_start, levels)
    half_bin = 1.0 / (levels - 1)
    centre = 2.0 * half_bin * level - 1.0
    lower = np.where(level == 0, -np.inf, centre - half_bin)
    upper = np.where(level == levels - 1, np.inf, centre + half_bin)
    precision = np.exp(-0.5 * log_variance)
    return log_interval_probability((lower - mean) * precision, (upper - mean) * precision)
