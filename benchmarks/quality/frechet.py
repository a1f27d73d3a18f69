"""The Fréchet distance between two sets of features, each taken for a Gaussian (Heusel et al. 2017, eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffusion.errors import InputError


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D] of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray) -> Gaussian:
        """Mean and covariance (divided by n − 1) of features [n, D].

        Raises:
            InputError: fewer than two samples, or features that are not finite.
        """
        if features.ndim != 2 or len(features) < 2:
            raise InputError(f"features have shape {features.shape}, expected [n, D] with n of at least 2")
        if not np.isfinite(features).all():
            raise InputError("features: found NaN or an infinity, expected finite numbers")
        centered = features.astype(np.float64)
        mean = centered.mean(axis=0)
        centered -= mean
        return cls(mean, centered.T @ centered / (len(features) - 1))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁^½ Σ₂ Σ₁^½)^½), Dowson & Landau 1982, eq. 16: the square of a distance, as FID is.

    The trace of the root comes from eigenvalues of symmetric matrices alone, so singular covariances (n ≤ D) do no
    harm: rounding below zero is cut off where it arises.

    With n samples it is too large by about tr Σ · (1/n + (D + 1)/4n): compare at equal n only.
    """
    values, vectors = np.linalg.eigh(first.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    middle = root @ second.covariance @ root
    of_middle = np.linalg.eigvalsh((middle + middle.T) / 2.0)
    trace_of_root = np.sqrt(np.maximum(of_middle, 0.0)).sum()
    apart = first.mean - second.mean
    return float(apart @ apart + np.trace(first.covariance) + np.trace(second.covariance) - 2.0 * trace_of_root)
