"""A network that is known exactly, for fits whose optimum is known: Gaussian data of T = 20 timesteps."""

from __future__ import annotations

import numpy as np
import torch

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from tests.gaussian import GaussianNetwork
from train.fitting.network import FittedNetwork

MEAN, STD = -0.3, 0.4
PROCESS = Process(
    SampleShape(1, 2, 2), NoiseSchedule.make("linear", 20, 1e-3, 0.6), clip_sample=None, checkpoint_sha256="ab12"
)


class GaussianModule(torch.nn.Module):
    """E[ε | x_t] of N(−0.3, 0.4²), linear in x_t and piecewise linear in t; in the precision of x."""

    def __init__(self) -> None:
        super().__init__()
        known = GaussianNetwork(PROCESS, MEAN, STD)
        self.lines = torch.tensor(np.stack([known.slope, known.offset]))  # [2, T]

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        below = t.detach().floor().long().clamp(0, self.lines.shape[1] - 2)
        share = t - below
        slope, offset = self.lines[:, below] * (1.0 - share) + self.lines[:, below + 1] * share
        return slope.to(x.dtype).reshape(-1, 1, 1, 1) * x + offset.to(x.dtype).reshape(-1, 1, 1, 1)


def gaussian_network(seed: int = 0) -> FittedNetwork:
    """Of `PROCESS`."""
    return FittedNetwork(PROCESS, GaussianModule(), torch.device("cpu"), seed, None, None, True)


def exact_x_0(network: FittedNetwork, indices: range) -> torch.Tensor:
    """Where the probability flow leads: data has mean μ and deviation s, so x_0 = μ + s·x_T, up to what ᾱ_T leaves."""
    return MEAN + STD * network.noise(indices)
