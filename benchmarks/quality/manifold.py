"""Fidelity and diversity from neighborhoods: precision and recall, density and coverage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from diffusion.errors import InputError

# Kynkäänniemi et al. 2019, section 3: the neighborhood size they settle on.
NEIGHBORS = 3
# Naeem et al. 2020: of two equal distributions coverage is 1 − 2^−k in expectation, above 0.95 from 5 on.
COVERAGE_NEIGHBORS = 5
# Distances held at once, 64 MB in float64: sets of 50,000 features of Inception need no more than sets of digits.
_DISTANCES_AT_ONCE = 1 << 23
_COLUMNS_AT_ONCE = 4096


def manifold_measures(
    real: np.ndarray,
    generated: np.ndarray,
    neighbors: int = NEIGHBORS,
    coverage_neighbors: int = COVERAGE_NEIGHBORS,
) -> dict[str, float]:
    """How much of what is generated looks real, and how much of what is real is generated.

    A set's manifold is the union of balls around its points that reach their k-th nearest neighbor in the set.

    Args:
        real, generated: features [n, D]; the measures depend on n, so both sets have the same.
        neighbors: k of precision and recall.
        coverage_neighbors: k of density and coverage.

    Returns:
        `precision`: the part of `generated` inside the manifold of `real` (Kynkäänniemi et al. 2019, eq. 1, 2).
        `recall`: the part of `real` inside the manifold of `generated`.
        `density`: over the balls around `real`, how many points of `generated` each has, in units of k; 1 is expected
            of equal distributions, and it may be more (Naeem et al. 2020). Unlike precision, it does not take one
            outlier among `real` for a large manifold.
        `coverage`: the part of the balls around `real` that have a point of `generated` (Naeem et al. 2020). Unlike
            recall, it does not grow with outliers among `generated`.

    Raises:
        InputError: sets of different sizes, or not more points than neighbors.
    """
    if len(real) != len(generated):
        raise InputError(f"precision and recall: found {len(real)} real and {len(generated)} generated, expected equal")
    most = max(neighbors, coverage_neighbors)
    if len(real) <= most:
        raise InputError(f"precision and recall: found {len(real)} points, expected more than {most}")
    of_real, of_real_coverage = _radii_2(real, (neighbors, coverage_neighbors))
    (of_generated,) = _radii_2(generated, (neighbors,))
    precise, counted, covered = 0, 0, np.zeros(len(real), dtype=bool)
    for block in _squared_distances(generated, real):
        precise += int((block <= of_real).any(axis=1).sum())
        inside = block <= of_real_coverage
        counted += int(inside.sum())
        covered |= inside.any(axis=0)
    recalled = sum(int((block <= of_generated).any(axis=1).sum()) for block in _squared_distances(real, generated))
    return {
        "precision": precise / len(generated),
        "recall": recalled / len(real),
        "density": counted / (coverage_neighbors * len(generated)),
        "coverage": float(covered.mean()),
    }


def _radii_2(points: np.ndarray, neighbors: Sequence[int]) -> list[np.ndarray]:
    """For each k, the squared distance of every point to its k-th nearest other one, float64 [n]."""
    # A point is its own nearest neighbor at distance 0: the k-th other one stands at place k. Copied, because a
    # column's view would keep its whole block alive.
    places = sorted(set(neighbors))
    blocks = [
        np.partition(block, places, axis=1)[:, list(neighbors)].copy() for block in _squared_distances(points, points)
    ]
    return list(np.concatenate(blocks).T)


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
