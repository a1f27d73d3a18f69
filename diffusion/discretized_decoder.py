"""The last step's likelihood: the probability of a pixel's gray level under a Gaussian over the real line.

A pixel has `levels` gray levels, spread evenly over [−1, 1]. Each owns the bin half a step to either side of it; the
outer bins reach to infinity, so that the bins' probabilities add up to 1 (Ho et al. 2020, eq. 13).

The log-probability of a bin does not underflow in the tails, where Φ(upper) and Φ(lower) both round to 0 or to 1: the
exponential part of the tail is split off exactly. A bin 10,000 standard deviations away keeps its relative accuracy.
"""

from __future__ import annotations

import numpy as np

from diffusion.errors import InputError

# Of a step between levels: float32 pixels are off by 1e-7, pixels of another number of levels by a good part of a step.
_OFF_LEVEL = 1e-2
# (1 + 2x)·exp(x²)·erfc(x), smooth and between 1 and 1.3 for all x >= 0, as Chebyshev polynomials in
# s = (x − 3.75)/(x + 3.75). Interpolated with 40 digits; the first coefficient left out is below 1e-18.
_PIVOT = 3.75
_CHEBYSHEV = (
    1.1775789345674017,
    -0.004590054580646478,
    -0.08424913336651792,
    0.05920993999819189,
    -0.026658668435305753,
    0.009074997670705265,
    -0.002413163540417608,
    0.0004907758365258086,
    -6.916973302501207e-05,
    4.13902798607301e-06,
    7.74038306619849e-07,
    -2.1886401049234397e-07,
    1.076499946567091e-08,
    4.521959811218287e-09,
    -7.754400208831351e-10,
    -6.318088340886684e-11,
    2.86879501093067e-11,
    1.9455868545777347e-13,
    -9.65469674843344e-13,
    3.25254814814874e-14,
    3.3478119482868056e-14,
    -1.864562880419313e-15,
    -1.2507950530688648e-15,
    7.418235256624044e-17,
    5.068148904796111e-17,
    -2.237056659436e-18,
)


def level_of(x_start: np.ndarray, levels: int) -> np.ndarray:
    """The gray level 0..levels−1 of every element, float64 of whole numbers.

    Args:
        x_start: any shape, in [−1, 1].
        levels: 256 for 8-bit images, 17 for scikit-learn's digits.

    Raises:
        InputError: a value that is not one of the levels.
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
        InputError: a value that is not one of the levels.
    """
    level = level_of(x_start, levels)
    half_bin = 1.0 / (levels - 1)
    centre = 2.0 * half_bin * level - 1.0
    lower = np.where(level == 0, -np.inf, centre - half_bin)
    upper = np.where(level == levels - 1, np.inf, centre + half_bin)
    precision = np.exp(-0.5 * log_variance)
    return log_interval_probability((lower - mean) * precision, (upper - mean) * precision)


def log_interval_probability(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """ln[Φ(upper) − Φ(lower)] for the standard normal distribution function Φ, with no floor.

    Args:
        lower, upper: float64, broadcast with each other, lower < upper; −inf and inf are open ends.

    Returns:
        float64, relative error about 1e-15 in the tails; 1e-16 absolute in the probability about the centre.
    """
    lower, upper = np.broadcast_arrays(np.asarray(lower, np.float64), np.asarray(upper, np.float64))
    # Mirrored where it helps, so that the nearer end is always `lower` and every tail an upper one.
    mirrored = upper < -lower
    lower, upper = np.where(mirrored, -upper, lower), np.where(mirrored, -lower, upper)
    outside = _upper_tail(upper) + _upper_tail(np.maximum(-lower, 0.0))
    near = np.maximum(lower, 0.0)
    scaled_near, scaled_upper = _scaled_tail(near), _scaled_tail(upper)
    with np.errstate(divide="ignore"):  # ln 0 where the interval is open
        # ln of Q(upper)/Q(lower), the difference of squares as a product: their own difference would cancel.
        log_ratio = np.log(scaled_upper / scaled_near) - 0.5 * (upper - near) * (upper + near)
        in_tail = np.log(scaled_near) - 0.5 * near**2 + np.log(-np.expm1(log_ratio))
    about_centre = np.log1p(-np.minimum(outside, 1.0 - 1e-16))
    return np.where(lower > 0.0, in_tail, about_centre)


def _upper_tail(z: np.ndarray) -> np.ndarray:
    """Q(z) = 1 − Φ(z) for z >= 0."""
    return _scaled_tail(z) * np.exp(-0.5 * z**2)


def _scaled_tail(z: np.ndarray) -> np.ndarray:
    """Q(z)·exp(z²/2) for z >= 0: what is left of the tail without its exponential, ½ at 0 and about 0.4/z far out."""
    x = z / np.sqrt(2.0)
    s = 1.0 - 2.0 * _PIVOT / (x + _PIVOT)
    last, before = np.zeros_like(s), np.zeros_like(s)
    for coefficient in _CHEBYSHEV[:0:-1]:  # Clenshaw's recurrence
        last, before = coefficient + 2.0 * s * last - before, last
    scaled: np.ndarray = 0.5 * (_CHEBYSHEV[0] + s * last - before) / (1.0 + 2.0 * x)
    return scaled
