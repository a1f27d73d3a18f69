"""How far two sets of points are from each other: distances between distributions of which there are only samples."""

from __future__ import annotations

import numpy as np


def sliced_wasserstein(first: np.ndarray, second: np.ndarray, num_directions: int = 64) -> float:
    """Root mean square, over directions, of the 2-Wasserstein distance of the projections (Rabin et al. 2012).

    Args:
        first, second: [N, 2], as many points each.
        num_directions: evenly spaced over half a turn.
    """
    angles = np.pi * np.arange(num_directions) / num_directions
    directions = np.stack([np.cos(angles), np.sin(angles)])  # [2, directions]
    # On a line the best transport pairs the points in their order.
    projected, other = (np.sort(points @ directions, axis=0) for points in (first, second))
    return float(np.sqrt(np.mean((projected - other) ** 2)))


def squared_mmd(first: np.ndarray, second: np.ndarray, bandwidth: float) -> float:
    """Maximum mean discrepancy, squared, unbiased, with a Gaussian kernel (Gretton et al. 2012, lemma 6).

    Zero on average for equal distributions, hence negative about half of the time.

    Args:
        first, second: [N, 2] and [M, 2].
        bandwidth: standard deviation of the kernel: the size of the differences that count.
    """
    n, m = len(first), len(second)
    within_first = (_kernel(first, first, bandwidth).sum() - n) / (n * (n - 1))  # k(x, x) = 1 is left out
    within_second = (_kernel(second, second, bandwidth).sum() - m) / (m * (m - 1))
    return float(within_first + within_second - 2.0 * _kernel(first, second, bandwidth).mean())


def distance_to_curve(points: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """Distance of points [N, 2] to the nearest of closely spaced points [K, 2] of a curve: float64 [N]."""
    return np.sqrt(np.maximum(_squared_distances(points, curve), 0.0).min(axis=1))


def _kernel(first: np.ndarray, second: np.ndarray, bandwidth: float) -> np.ndarray:
    return np.exp(-_squared_distances(first, second) / (2.0 * bandwidth**2))


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first[:, None, 0] - second[None, :, 0]) ** 2 + (first[:, None, 1] - second[None, :, 1]) ** 2
