"""Classifier-free guidance in PyTorch: the reference that the exported graph of it is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from diffusion.conditions import GUIDANCE
from diffusion.process import Process


def guided(network: torch.nn.Module, process: Process) -> torch.nn.Module:
    """A network under the contract of `process`: guided where that is."""
    return Guided(network, process) if process.is_guided else network


def predict_in_float32(
    network: torch.nn.Module, process: Process, x: np.ndarray, t: np.ndarray, *conditions: np.ndarray
) -> np.ndarray:
    """The reference prediction, float32 [N, C or 2C, H, W], on the CPU.

    Args:
        network: under the contract of `process`, without guidance.
        process: guided or not.
        x, t: float32 [N, C, H, W] and [N].
        conditions: one array [N, …] for each of the process's.
    """
    with torch.inference_mode():
        prediction: np.ndarray = guided(network, process)(*map(torch.from_numpy, (x, t, *conditions))).numpy()
    return prediction


class Guided(torch.nn.Module):
    """A class-conditional network that is guided away from the null class (Ho & Salimans 2022, eq. 6).

    p_null + g·(p_y − p_null) on the first C channels, with g = 1 + w in the paper's notation; the channels of a learned
    variance are those of the class. At g = 1 the prediction is p_y and at g = 0 p_null, every bit of it.

    Args:
        network: takes x, t and the process's conditions but for the scale.
        process: with the scale among its conditions.
        together: whether both predictions are made by one call on 2N samples, which is faster on a GPU. Two calls
            are, on a CPU, bit for bit those of the network alone.
    """

    def __init__(self, network: torch.nn.Module, process: Process, together: bool = False) -> None:
        super().__init__()
        self.network = network
        names = [condition.name for condition in process.conditions]
        label = process.label
        assert label is not None
        assert label.null is not None
        self._scale, self._label, self._null = names.index(GUIDANCE), names.index(label.name), label.null
        self._together = together
        self._channels = process.sample.channels
        self.eval()

    def forward(self, x: torch.Tensor, t: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
        """The prediction, [N, C or 2C, H, W]."""
        scale = conditions[self._scale].reshape(-1, 1, 1, 1).float()
        with_null = list(conditions)
        with_null[self._label] = torch.full_like(conditions[self._label], self._null)
        given, null = ([x, t, *self._without_scale(each)] for each in (conditions, with_null))
        if self._together:
            of_class, of_null = self.network(*map(torch.cat, zip(given, null, strict=True))).chunk(2)
        else:
            of_class, of_null = self.network(*given), self.network(*null)
        p_y, p_null = (each[:, : self._channels].float() for each in (of_class, of_null))
        guided = torch.where(scale == 1.0, p_y, p_null + scale * (p_y - p_null)).to(of_class.dtype)
        return torch.cat([guided, of_class[:, self._channels :]], dim=1)

    def _without_scale(self, conditions: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (*conditions[: self._scale], *conditions[self._scale + 1 :])
