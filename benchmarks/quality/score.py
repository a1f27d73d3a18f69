"""How far a set of images is from the data: Fréchet distance, class coverage, precision and recall."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from benchmarks.quality.frechet import Gaussian, frechet_distance
from benchmarks.quality.manifold import precision_and_recall

_RESAMPLES = 20
Scores = dict[str, Any]


class Features(Protocol):
    """Features of images; `digit_features` and `torchscript_features` beside this have them."""

    name: str

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """uint8 [N, H, W, C] → features [N, D], and classes int64 [N] where there are any."""

    def fingerprint(self) -> str:
        """Of what the features depend on."""


class Scorer:
    """Compares sets of images with the data that the network was trained on.

    Args:
        features: of images.
        train: uint8 [N, H, W, C], the data.
        held_out: as many of the same kind as were not trained on; None if there are none.
    """

    def __init__(self, features: Features, train: np.ndarray, held_out: np.ndarray | None) -> None:
        self.features = features
        self._real, self._real_classes = features(train)
        self._gaussian = Gaussian.fit(self._real)
        self._held_out = None if held_out is None else features(held_out)
        # Precision and recall take as many real samples as generated ones, always the same.
        self._order = np.random.default_rng(0).permutation(len(self._real))

    @property
    def total_variance(self) -> float:
        """tr Σ of the data's features: the scale of a distance in them."""
        return float(np.trace(self._gaussian.covariance))

    def score(self, images: np.ndarray) -> Scores:
        """Every measure of uint8 [n, H, W, C].

        Returns:
            `frechet`: from all n to the data; depends on n.
            `frechet_at_held_out_size`: the mean over blocks of the held-out part's size, to compare with its own.
            `precision`, `recall`: Kynkäänniemi et al. 2019, of as many generated as real ones.
            `class_total_variation`: half the sum of the differences of the classes' shares from the data's.
            `classes`: how many of the data's classes there are.
        """
        features, classes = self.features(images)
        return self._score(features, classes)

    def _score(self, features: np.ndarray, classes: np.ndarray | None) -> Scores:
        num = min(len(features), len(self._real))
        precision, recall = precision_and_recall(self._real[self._order[:num]], features[:num])
        scores: Scores = {"frechet": self._frechet(features), "precision": precision, "recall": recall}
        size = self.held_out_size(len(features))
        if size is not None:
            blocks = [features[first : first + size] for first in range(0, len(features) - size + 1, size)]
            scores["frechet_at_held_out_size"] = float(np.mean([self._frechet(block) for block in blocks]))
        if classes is not None:
            scores |= self._coverage(classes)
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
                coverages.append(self._coverage(classes[chosen])["class_total_variation"])
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

    def _coverage(self, classes: np.ndarray) -> Scores:
        assert self._real_classes is not None
        num_classes = int(max(classes.max(), self._real_classes.max())) + 1
        real = np.bincount(self._real_classes, minlength=num_classes)
        found = np.bincount(classes, minlength=num_classes)
        return {
            "class_total_variation": float(np.abs(real / real.sum() - found / found.sum()).sum() / 2.0),
            "classes": int(np.count_nonzero((found > 0) & (real > 0))),
        }
