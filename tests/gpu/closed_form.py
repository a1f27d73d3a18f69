"""The network of Gaussian data, in PyTorch: elementwise, so that a GPU and NumPy give its predictions the same bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from diffusion.process import Process
from runtime.engines.interface import Engine


class GaussianNetwork(torch.nn.Module):
    """The optimal eps of x_0 ~ N(mean, std²): eps = slope_t·x_t + offset_t, one multiplication and one addition.

    By Bayes' rule with q(x_t | x_0) of Ho et al. 2020, eq. 4. With a learned variance its second C channels are half
    of that.

    Args:
        process: whose schedule it is.
        mean, std: of the data.
    """

    def __init__(self, process: Process, mean: float = 0.1, std: float = 0.5) -> None:
        super().__init__()
        alpha_bar = process.schedule.alpha_bar
        slope = np.sqrt(1.0 - alpha_bar) / (alpha_bar * std**2 + 1.0 - alpha_bar)
        self.process = process
        self.register_buffer("slope", torch.from_numpy(slope.astype(np.float32)))
        self.register_buffer("offset", torch.from_numpy((-slope * np.sqrt(alpha_bar) * mean).astype(np.float32)))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """[N, C or 2C, H, W]."""
        # Two kernels, so that no compiler makes one rounding of two.
        eps = self.slope[t].reshape(-1, 1, 1, 1) * x
        eps = eps + self.offset[t].reshape(-1, 1, 1, 1)
        wide = self.process.prediction_channels > self.process.sample.channels
        return torch.cat([eps, 0.5 * eps], dim=1) if wide else eps


class GaussianEngine(Engine):
    """The same in NumPy, as an `Engine` for the host."""

    name, sha256, precision = "Gaussian", "0" * 64, "fp32"

    def __init__(self, network: GaussianNetwork) -> None:
        self.process = network.process
        self._slope, self._offset = network.slope.cpu().numpy(), network.offset.cpu().numpy()

    def _bind(
        self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray, *conditions: np.ndarray
    ) -> Callable[[], None]:
        """As `runtime.engines.interface.Engine.bind`."""
        channels = self.process.sample.channels

        def call() -> None:
            whole = t.astype(np.int64)
            prediction[:, :channels] = self._slope[whole].reshape(-1, 1, 1, 1) * x
            prediction[:, :channels] += self._offset[whole].reshape(-1, 1, 1, 1)
            prediction[:, channels:] = np.float32(0.5) * prediction[:, : prediction.shape[1] - channels]

        return call
