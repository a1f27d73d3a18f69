"""Classifier-free guidance in PyTorch: the reference that the exported graph of it is compared with."""

from __future__ import annotations

import torch

from diffusion.conditions import GUIDANCE
from diffusion.process import Process


class Guided(torch.nn.Module):
    """A class-conditional network that is guided away from the null class (Ho & Salimans 2022, eq. 6).

    p_null + g·(p_y − p_null) on the first C channels, with g = 1 + w in the paper's notation; the channels of a learned
    variance are those of the class. At g = 1 the prediction is p_y and at g = 0 p_null, every bit of it.

    Args:
        network: takes x, t and the process's conditions but for the scale.
        process: with the scale among its conditions.
    """

    def __init__(self, network: torch.nn.Module, process: Process) -> None:
        super().__init__()
        self.network = network
        names = [condition.name for condition in process.conditions]
        label = process.label
        assert label is not None
        assert label.null is not None
        self._scale, self._label, self._null = names.index(GUIDANCE), names.index(label.name), label.null
        self._channels = process.sample.channels
        self.eval()

    def forward(self, x: torch.Tensor, t: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
        """The prediction, [N, C or 2C, H, W]."""
        scale = conditions[self._scale].reshape(-1, 1, 1, 1).float()
        null = (*conditions[: self._label], torch.full_like(conditions[self._label], self._null))
        of_class = self.network(x, t, *self._without_scale(conditions))
        of_null = self.network(x, t, *self._without_scale((*null, *conditions[self._label + 1 :])))
        p_y, p_null = (each[:, : self._channels].float() for each in (of_class, of_null))
        guided = torch.where(scale == 1.0, p_y, p_null + scale * (p_y - p_null)).to(of_class.dtype)
        return torch.cat([guided, of_class[:, self._channels :]], dim=1)

    def _without_scale(self, conditions: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (*conditions[: self._scale], *conditions[self._scale + 1 :])
