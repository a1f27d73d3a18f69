"""Precision and recall of generated samples (Kynkäänniemi et al. 2019), in any features."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from diffusion.errors import InputError

# Kynkäänniemi et al. 2019, section 3: the neighborhood size they settle on.
NEIGHBORS = 3
# Distances held at once, 64 MB in float64: sets of 50,000 features of Inception need no more than sets of digits.
_DISTANCES_AT_ONCE = 1 << 23
_COLUMNS_AT_ONCE = 4096


def precision_and_recall(real: np.ndarray, generated: np.ndarray, neighbors: int = NEIGHBORS) -> tuple[float, float]:
    """How much of what is generated looks real, and how much of what is real can be generated.

    A set's manifold is the union of balls around its points that reach their k-th nearest neighbor in the set
    (eq. 1, 2). Precision is the part of `generated` inside the manifold of `real`, recall the other way round.

    Args:
        real, generated: features [n, D]; the measure depends on n, so both sets have the same.
        neighbors: k.

    Raises:
        InputError: sets of different sizes, or not more points than neighbors.
    """
    if len(real) != len(generated):
        raise InputError(f"precision and recall: found {len(real)} real and {len(generated)} generated, expected equal")
    if len(real) <= neighbors:
        raise InputError(f"precision and recall: found {len(real)} points, expected more than {neighbors}")
    return _part_inside(generated, real, neighbors), _part_inside(real, generated, neighbors)


def _part_inside(points: np.ndarray, manifold: np.ndarray, neighbors: int) -> float:
    # A point is its own nearest neighbor at distance 0: the k-th other one stands at place k. Copied, because a
    # column's view would keep its whole block alive.
    radius_2 = np.concatenate(
        [
            np.partition(block, neighbors, axis=1)[:, neighbors].copy()
            for block in _squared_distances(manifold, manifold)
        ]
    )
    inside = [(block <= radius_2).any(axis=1) for block in _squared_distances(points, manifold)]
    return float(np.concatenate(inside).mean())


def _squared_distances(rows: np.ndarray, columns: np.ndarray) -> Iterator[np.ndarray]:
    """|row − column|², float64, in blocks of some rows and all columns, one at a time."""
    starts = range(0, len(columns), _COLUMNS_AT_ONCE)
    of_columns = np.concatenate([_squared_norms(columns[first : first + _COLUMNS_AT_ONCE]) for first in starts])
    rows_at_once = max(1, _DISTANCES_AT_ONCE // len(columns))
    for first_row in range(0, len(rows), rows_at_once):
        block = rows[first_row : first_row + rows_at_once].astype(np.float64)
        of_block = _squared_norms(block)[:, None]
        distances = np.empty((len(block), len(columns)))
        for first in starts:
            tile = np.s_[first : first + _COLUMNS_AT_ONCE]
            products = 2.0 * block @ columns[tile].astype(np.float64).T
            distances[:, tile] = np.maximum(of_block + of_columns[tile] - products, 0.0)
        yield distances


def _squared_norms(points: np.ndarray) -> np.ndarray:
    return (points.astype(np.float64) ** 2).sum(axis=1)
