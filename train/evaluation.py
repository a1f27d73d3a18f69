"""The held-out loss: always the same images, timesteps and noise, so that it compares across steps and runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from train.draws import Draws
from train.image_set import ImageSet
from train.objective import Objective

# Enough that the mean over timesteps is steady, few enough to cost little beside the steps between.
NUM_EVALUATIONS = 1024
_SEED = 0


class HeldOutLoss:
    """The mean loss over `NUM_EVALUATIONS` pairs of a held-out image and a timestep.

    Timesteps are spread evenly over 0 … T−1; the noise belongs to the pair's number, not to the run's seed.

    Args:
        images: held-out ones, each used about equally often.
        objective: what to average.
        num_train_timesteps: T.
        batch_size: how many pairs at a time.
        device: where the network is.
    """

    def __init__(
        self,
        images: ImageSet,
        objective: Objective,
        num_train_timesteps: int,
        batch_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._images, self._objective, self._device = images, objective, device
        self._num_train_timesteps, self._batch_size = num_train_timesteps, batch_size

    def __call__(self, network: Any) -> float:
        """The loss of `network`: from x_t and timesteps to the prediction."""
        draws, total = Draws(_SEED), 0.0
        chw = self._images.shape.chw
        for first in range(0, NUM_EVALUATIONS, self._batch_size):
            pairs = np.arange(first, min(first + self._batch_size, NUM_EVALUATIONS))
            timesteps = (2 * pairs + 1) * self._num_train_timesteps // (2 * NUM_EVALUATIONS)
            # In an order of their own: a set sorted by class would tie class to timestep.
            x_start = self._images.x_start([draws.image_index(int(pair), self._images.num_images) for pair in pairs])
            eps = np.stack([draws.image(int(pair), self._num_train_timesteps, chw).eps for pair in pairs])
            with torch.no_grad():
                losses = self._objective.per_sample(
                    network,
                    torch.from_numpy(x_start).to(self._device),
                    torch.from_numpy(timesteps).to(self._device),
                    torch.from_numpy(eps).to(self._device),
                )
            total += float(losses.double().sum())
        return total / NUM_EVALUATIONS
