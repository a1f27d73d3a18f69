"""Objective `data`: the energy distance between samples and data, in pixels and in features of a small network.

2E|X−Y| − E|X−X'| − E|Y−Y'|, which is 0 only where the distributions are equal (Székely & Rizzo 2013), from pairs of
different samples, so that it is right on average for every number of them.

The features are of a network that is made here: a classifier of the data where it has labels, else convolutions with
random weights. They are none of those that `benchmarks.quality` judges by.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

PIXELS, NETWORK = "pixels", "network"
FEATURES = (PIXELS, NETWORK, "both")
_MAX_IMAGES = 2000
_NETWORK_WEIGHT = 0.5
_CHANNELS = (48, 96)
_EPOCHS, _BATCH, _LEARNING_RATE = 12, 64, 2e-3
_LOWEST_SIZE = 4
_MIN_SPREAD = 1e-4


class EnergyDistance:
    """From samples to the data.

    Args:
        data: float32 [N, C, H, W]; of more than 2,000 images so many are drawn.
        held_out: likewise, of images that the network was not trained on; None if there are none.
        labels: int64 [N] of `data`; None where it has none.
        features: in which it is measured, one of `FEATURES`.
        seed: of the features' network and of what is drawn.
    """

    name = "data"

    def __init__(
        self,
        data: torch.Tensor,
        held_out: torch.Tensor | None,
        labels: np.ndarray | None,
        features: str,
        seed: int,
    ) -> None:
        self._features: list[nn.Module] = [] if features == NETWORK else [nn.Flatten()]
        if features != PIXELS:
            self._features.append(feature_network(data, labels, seed))
        # In units of the data's spread; the network's count half, which on digits is better than either alone.
        weights = [1.0] if len(self._features) == 1 else [1.0, _NETWORK_WEIGHT]
        chosen = _some(data, seed)
        in_order = data[chosen.sort().values]
        self._scales = [_spread(each(in_order)) / weight for each, weight in zip(self._features, weights, strict=True)]
        self._data = self._of(data[chosen])
        self._held_out = None
        if held_out is not None and len(held_out) > 1:
            self._held_out = self._of(held_out[_some(held_out, seed).sort().values])

    def loss(self, x_0: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
        """Of samples [N, C, H, W] to the data, a number; their indices do not matter."""
        return self._distance(x_0, self._data)

    def figures(self, x_0: torch.Tensor, indices: Sequence[int]) -> dict[str, float]:
        """By name, what a table is reported to reach."""
        found = {"energy distance to the data": float(self.loss(x_0, indices))}
        if self._held_out is not None:
            found["energy distance to held-out data"] = float(self._distance(x_0, self._held_out))
        return found

    def _distance(self, x_0: torch.Tensor, others: list[tuple[torch.Tensor, float]]) -> torch.Tensor:
        total = torch.zeros((), device=x_0.device)
        for extract, scale, (other, within) in zip(self._features, self._scales, others, strict=True):
            own = extract(x_0) / scale
            total = total + 2.0 * torch.cdist(own, other).mean() - torch.pdist(own).mean() - within
        return total

    def _of(self, images: torch.Tensor) -> list[tuple[torch.Tensor, float]]:
        """Features of images, and the mean distance between two of them."""
        found = [each(images) / scale for each, scale in zip(self._features, self._scales, strict=True)]
        return [(features, float(torch.pdist(features).mean())) for features in found]


class _FeatureNetwork(nn.Module):
    def __init__(self, shape: torch.Size, num_classes: int) -> None:
        super().__init__()
        channels, *size = shape
        self.convolutions = nn.Sequential(nn.Conv2d(channels, _CHANNELS[0], 5, padding=2), nn.SiLU())
        width = _CHANNELS[0]
        while min(size) > _LOWEST_SIZE:
            self.convolutions.extend([nn.Conv2d(width, _CHANNELS[1], 3, stride=2, padding=1), nn.SiLU()])
            width, size = _CHANNELS[1], [-(-each // 2) for each in size]
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolutions(x).flatten(1)


def feature_network(data: torch.Tensor, labels: np.ndarray | None, seed: int) -> nn.Module:
    """The network that maps images to features, trained where there are labels; without gradients of its weights."""
    num_classes = 1 if labels is None else int(labels.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _FeatureNetwork(data.shape[1:], num_classes).to(data.device)
        if labels is not None:
            _train(network, data, torch.from_numpy(labels).to(data.device))
    return network.requires_grad_(False).eval()


def _train(network: _FeatureNetwork, data: torch.Tensor, labels: torch.Tensor) -> None:
    batches = -(-len(data) // _BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=_EPOCHS * batches)
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(data)).split(_BATCH):
            logits = network.head(network.convolutions(data[batch]).mean(dim=(2, 3)))
            loss = functional.cross_entropy(logits, labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _some(images: torch.Tensor, seed: int) -> torch.Tensor:
    """Places of as many images as are compared; not the first ones, since data is often in the order of its classes."""
    return torch.from_numpy(np.random.default_rng(seed).permutation(len(images))[:_MAX_IMAGES])


def _spread(features: torch.Tensor) -> float:
    """Root mean square distance to the mean; 1 where there is none but rounding."""
    spread = float((features - features.mean(dim=0)).square().sum(dim=1).mean().sqrt())
    return spread if spread > _MIN_SPREAD else 1.0
