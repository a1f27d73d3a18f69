"""Networks to run samplers on: a random nonlinear one, and the exact flow of Gaussian data."""

from __future__ import annotations

import numpy as np
import torch

from diffusion.noise_schedule import NoiseSchedule
from diffusion.prediction import from_x_start
from diffusion.process import Process, SampleShape
from tests.gaussian import GaussianNetwork

SHAPE = SampleShape(1, 4, 4)


def a_process(**changes) -> Process:
    """Linear, 1,000 timesteps, epsilon, unclipped, unless said."""
    return Process(**({"sample": SHAPE, "schedule": NoiseSchedule.make("linear"), "clip_sample": None} | changes))


def gaussian(process: Process, mean: float = 0.3, std: float = 0.5) -> GaussianNetwork:
    return GaussianNetwork(process, mean, std)


class RandomNetwork:
    """A random denoiser: x_start = tanh of two convolutions around a SiLU, shifted by a sine of t.

    Nonlinear in x, bounded so that chains stay among data, and nobody's closed form. Its prediction is what the
    process's type makes of that x_start.

    Args:
        odd: x_start(−x) = −x_start(x), as for data that are symmetric about 0.
    """

    def __init__(self, process: Process, odd: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        channels, hidden = process.sample.channels, 8

        def weights(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64) / np.sqrt(np.prod(shape[1:]))

        self.process, self.odd = process, odd
        self.first, self.last = weights(hidden, channels, 3, 3), weights(process.prediction_channels, hidden, 3, 3)
        self.frequencies = torch.linspace(0.5, 4.0, hidden, dtype=torch.float64)

    def __call__(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        """x [N, C, H, W], t [N] → prediction [N, C or 2C, H, W], float64 whatever comes in."""
        x, place = np.asarray(x, dtype=np.float64), np.asarray(t).astype(np.int64)
        phase = torch.from_numpy(place / self.process.schedule.num_train_timesteps)[:, None] * self.frequencies
        shift = torch.sin(phase)[:, :, None, None]
        hidden = torch.nn.functional.conv2d(torch.from_numpy(x), self.first, padding=1)
        hidden = torch.tanh(hidden) * (1.5 + shift) if self.odd else torch.nn.functional.silu(2.0 * hidden + shift)
        said = torch.tanh(torch.nn.functional.conv2d(hidden, self.last, padding=1)).numpy()
        x_start, w = said[:, : x.shape[1]], said[:, x.shape[1] :]
        alpha_bar = self.process.schedule.alpha_bar[place][:, None, None, None]
        return np.concatenate([from_x_start(x_start, self.process.prediction_type, x, alpha_bar), w], axis=1)


def flow_of_gaussian_data(x: np.ndarray, start: float, end: float, mean: float, std: float) -> np.ndarray:
    """Where the probability flow takes x from ᾱ = start to ᾱ = end if data are N(mean, std²): Song et al. 2021.

    The flow keeps every point at its quantile of N(√ᾱ·mean, ᾱ·std² + 1 − ᾱ).
    """
    spread = np.sqrt((end * std**2 + 1 - end) / (start * std**2 + 1 - start))
    return np.sqrt(end) * mean + spread * (x - np.sqrt(start) * mean)
