"""Precision and recall of generated samples (Kynkäänniemi et al. 2019), in any features."""

from __future__ import annotations

import numpy as np

from diffusion.errors import InputError

# Kynkäänniemi et al. 2019, section 3: the neighborhood size they settle on.
NEIGHBORS = 3
_ROWS_AT_ONCE = 1024


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
    real, generated = real.astype(np.float64), generated.astype(np.float64)
    return _part_inside(generated, real, neighbors), _part_inside(real, generated, neighbors)


def _part_inside(points: np.ndarray, manifold: np.ndarray, neighbors: int) -> float:
    # A point is its own nearest neighbor at distance 0: the k-th other one stands at place k.
    radius_2 = np.concatenate(
        [np.partition(block, neighbors, axis=1)[:, neighbors] for block in _squared_distances(manifold, manifold)]
    )
    inside = [(block <= radius_2).any(axis=1) for block in _squared_distances(points, manifold)]
    return float(np.concatenate(inside).mean())


def _squared_distances(rows: np.ndarray, columns: np.ndarray) -> list[np.ndarray]:
    """|row − column|², float64, in blocks [up to 1024, number of columns]."""
    of_columns = (columns**2).sum(axis=1)
    blocks = []
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        block = rows[first : first + _ROWS_AT_ONCE]
        blocks.append(np.maximum((block**2).sum(axis=1)[:, None] + of_columns - 2.0 * block @ columns.T, 0.0))
    return blocks
