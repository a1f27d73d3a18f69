"""How far a set of images is from the data: Fréchet distance, neighborhoods, shares of classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from benchmarks.quality.manifold import manifold_measures
from diffusion.errors import InputError

_RESAMPLES = 20
Scores = dict[str, Any]


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


class Features(Protocol):
    """Features of images; those of `benchmarks.quality.features`."""

    name: str

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, C] → features [N, D]."""

    def fingerprint(self) -> str:
        """Of what the features depend on."""


class Scorer:
    """Compares sets of images with the data that the network was trained on.

    Args:
        features: of images.
        train: uint8 [N, H, W, C], the data.
        held_out: as many of the same kind as were not trained on; None if there are none.
        classify: uint8 [N, H, W, C] → classes int64 [N]; None where there are no classes.
    """

    def __init__(
        self,
        features: Features,
        train: np.ndarray,
        held_out: np.ndarray | None,
        classify: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self._features, self._classify = features, classify
        self._real, self._real_classes = self._read(train)
        self._gaussian = Gaussian.fit(self._real)
        self._held_out = None if held_out is None else self._read(held_out)
        # Precision and recall take as many real samples as generated ones, always the same.
        self._order = np.random.default_rng(0).permutation(len(self._real))

    @property
    def total_variance(self) -> float:
        """tr Σ of the data's features: the scale of a distance in them."""
        return float(np.trace(self._gaussian.covariance))

    def _read(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return self._features(images), None if self._classify is None else self._classify(images)

    def score(self, images: np.ndarray) -> Scores:
        """Every measure of uint8 [n, H, W, C].

        Returns:
            `frechet`: from all n to the data; depends on n.
            `frechet_at_held_out_size`: the mean over blocks of the held-out part's size, to compare with its own.
            `precision`, `recall`, `density`, `coverage`: of as many generated as real ones; see `manifold_measures`.
            `class_total_variation`: half the sum of the differences of the classes' shares from the data's.
            `classes`: how many of the data's classes there are.
        """
        return self._score(*self._read(images))

    def _score(self, features: np.ndarray, classes: np.ndarray | None) -> Scores:
        num = min(len(features), len(self._real))
        scores: Scores = {"frechet": self._frechet(features)}
        scores |= manifold_measures(self._real[self._order[:num]], features[:num])
        size = self.held_out_size(len(features))
        if size is not None:
            blocks = [features[first : first + size] for first in range(0, len(features) - size + 1, size)]
            scores["frechet_at_held_out_size"] = float(np.mean([self._frechet(block) for block in blocks]))
        if classes is not None:
            scores |= self._shares(classes)
        return scores

    def held_out_size(self, num: int) -> int | None:
        """How many held-out samples are compared with as many of `num` generated ones."""
        return None if self._held_out is None else min(num, len(self._held_out[0]))

    def floor(self, num: int) -> Scores:
        """What real images reach at sizes equal to those of a score of `num` images, mean and standard deviation.

        Returns:
            `train_resampled`: `num` of the data drawn with replacement, against the data: what the number alone costs.
            `held_out_resampled`: `num` of the held-out part drawn with replacement, against the data.
            `held_out`: the held-out part as it is, each sample once, against the data.
        """
        rng = np.random.default_rng(0)
        floors: Scores = {"train_resampled": self._resampled(self._real, self._real_classes, num, rng)}
        if self._held_out is not None:
            features, classes = self._held_out
            floors["held_out_resampled"] = self._resampled(features, classes, num, rng)
            size = min(num, len(features))
            chosen = np.random.default_rng(0).permutation(len(features))[:size]
            scores = self._score(features[chosen], None if classes is None else classes[chosen])
            floors["held_out"] = {"num": size, **{k: v for k, v in scores.items() if k != "frechet_at_held_out_size"}}
        return floors

    def _resampled(
        self, features: np.ndarray, classes: np.ndarray | None, num: int, rng: np.random.Generator
    ) -> Scores:
        distances, coverages = [], []
        for _ in range(_RESAMPLES):
            chosen = rng.integers(0, len(features), num)
            distances.append(self._frechet(features[chosen]))
            if classes is not None:
                coverages.append(self._shares(classes[chosen])["class_total_variation"])
        floor: Scores = {
            "num": num,
            "resamples": _RESAMPLES,
            "frechet": float(np.mean(distances)),
            "frechet_std": float(np.std(distances, ddof=1)),
        }
        if coverages:
            floor["class_total_variation"] = float(np.mean(coverages))
        return floor

    def _frechet(self, features: np.ndarray) -> float:
        return frechet_distance(Gaussian.fit(features), self._gaussian)

    def _shares(self, classes: np.ndarray) -> Scores:
        assert self._real_classes is not None
        num_classes = int(max(classes.max(), self._real_classes.max())) + 1
        real = np.bincount(self._real_classes, minlength=num_classes)
        found = np.bincount(classes, minlength=num_classes)
        return {
            "class_total_variation": float(np.abs(real / real.sum() - found / found.sum()).sum() / 2.0),
            "classes": int(np.count_nonzero((found > 0) & (real > 0))),
        }
