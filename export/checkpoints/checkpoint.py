"""What a reader makes of a checkpoint: a PyTorch network under the network contract, and its process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.process import Process
from runtime.engines.torch_guidance import predict_in_float32


@dataclass(frozen=True, eq=False)
class ForeignCheckpoint:
    """A trained network of another project, ready to be exported.

    Attributes:
        path: the file it was read from.
        format: whose format that is.
        process: what the network was trained to do.
        network: takes x [N, C, H, W] and t [N], both float32, t in 0..T−1 whatever the project feeds its own network,
            and one tensor for each condition of the process but for guidance; returns the prediction
            [N, C or 2C, H, W]. On the CPU, float32, in eval mode, without gradients.
        origins: where each of `prediction_type`, `schedule`, `variance_type` and `clip_sample` was found: a flag,
            a tensor, a default of the project.
        unet_config: the arguments of diffusers' `UNet2DModel` where that computes the same, else None.
        not_expressible: why there is no `unet_config`.
        notes: what else the user is told, a line each: of several networks in the file, which was read.
    """

    path: Path
    format: str
    process: Process
    network: torch.nn.Module
    origins: Mapping[str, str]
    unet_config: Mapping[str, Any] | None = None
    not_expressible: str = ""
    notes: tuple[str, ...] = ()

    @property
    def num_parameters(self) -> int:
        """How many numbers the network has learned."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def predict(self, x: np.ndarray, t: np.ndarray, *conditions: np.ndarray) -> np.ndarray:
        """As `predict_in_float32`, of this network."""
        return predict_in_float32(self.network, self.process, x, t, *conditions)
