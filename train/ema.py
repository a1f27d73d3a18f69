"""The exponential moving average of the weights, which is what gets sampled from."""

from __future__ import annotations

import copy
from typing import Any

import torch


def ema_decay_at(update: int, ema_decay: float) -> float:
    """The decay after update number `update` (from 1): min(ema_decay, (1 + n)/(10 + n)).

    The second term keeps the random initial weights out of the average of a short run.
    """
    return min(ema_decay, (1 + update) / (10 + update))


class Ema:
    """A copy of a network that follows it: ema ← decay · ema + (1 − decay) · weights.

    Attributes:
        network: the averaged network, in evaluation mode, without gradients.
    """

    def __init__(self, network: Any, ema_decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._ema_decay = ema_decay
        self._averages = list(self.network.parameters())

    def update(self, network: Any, update: int) -> None:
        """Take in the weights after update number `update`, counted from 1."""
        weights = [parameter.detach() for parameter in network.parameters()]
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, weights, 1.0 - ema_decay_at(update, self._ema_decay))

    def predict(self, x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The averaged network's prediction for x_t [N, C, H, W] at timesteps [N]."""
        prediction: torch.Tensor = self.network(x_t, timesteps).sample
        return prediction
