"""The network that a table is fitted to, with the noise and the conditions of its samples by their indices."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from diffusion.conditions import GUIDANCE
from diffusion.errors import InputError
from diffusion.normal import FITTING, draw_number, normal_batch
from diffusion.process import Process
from diffusion.step_table import StepTable
from runtime.engines.torch_checkpoint import Checkpoint
from runtime.engines.torch_guidance import guided
from train.fitting.rows import Predict, run_table, saved_bytes

# What all calls of a chain may keep for the gradient, unless it is computed anew.
_MAX_SAVED_BYTES = 2**30
_AT_ONCE = 256


@dataclass(frozen=True)
class FittedNetwork:
    """A checkpoint's network, without gradients of its weights.

    Sample i has the noise of seed and index i in a stream that no sampling draws from, so a table never meets the noise
    that it was fitted to.

    Attributes:
        process: what it was trained to do.
        module: takes x, t and the conditions.
        device: where it is.
        seed: of the noise.
        labels: int64 [L], sample i takes entry i mod L; None for an unconditional network.
        guidance: scale, of a guided network.
        takes_any_timestep: whether t may lie between whole numbers.
    """

    process: Process
    module: torch.nn.Module
    device: torch.device
    seed: int
    labels: np.ndarray | None
    guidance: float | None
    takes_any_timestep: bool

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, device: torch.device, seed: int, labels: np.ndarray | None, guidance: float | None
    ) -> FittedNetwork:
        """Of a checkpoint.

        Args:
            checkpoint: as loaded.
            device: to put it on.
            seed: of the noise.
            labels: of the data, to draw classes as they occur there; None for all classes alike.
            guidance: scale; None for 1 where the network is guided.

        Raises:
            InputError: a guidance scale for a network that is not guided.
        """
        process = checkpoint.process
        if guidance is not None and not process.is_guided:
            raise InputError("guidance is given, but the network has no null class to be guided away from")
        if process.label is None:
            labels = None
        elif labels is None:
            labels = np.arange(process.label.classes or 1, dtype=np.int64)
        else:
            labels = np.random.default_rng(seed).permutation(labels)
        network = checkpoint.network
        module = guided(network, process).requires_grad_(False).to(device)
        takes_any = checkpoint.unet.config.time_embedding_type != "learned"
        scale = (1.0 if guidance is None else guidance) if process.is_guided else None
        return cls(process, module, device, seed, labels, scale, takes_any)

    def noise(self, indices: Sequence[int]) -> torch.Tensor:
        """x_T of samples, float32 [N, C, H, W]."""
        draw = draw_number(None, FITTING)
        z = normal_batch(self.process.sample.chw, [self.seed] * len(indices), indices, draw)
        return torch.from_numpy(z).to(self.device)

    def predict(self, indices: Sequence[int]) -> Predict:
        """The network with the conditions of these samples."""
        given = {}
        if self.process.label is not None and self.labels is not None:
            labels = self.labels[np.asarray(indices) % len(self.labels)]
            given[self.process.label.name] = torch.from_numpy(labels).to(self.device)
        if self.guidance is not None:
            given[GUIDANCE] = torch.full((len(indices),), self.guidance, device=self.device)
        conditions = [given[condition.name] for condition in self.process.conditions]

        def call(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            prediction: torch.Tensor = self.module(x, t, *conditions)
            return prediction.float()

        return call

    def sample(self, table: StepTable, indices: Sequence[int]) -> torch.Tensor:
        """x_0 of samples, float32 [N, C, H, W], without gradients."""
        parts = [indices[first : first + _AT_ONCE] for first in range(0, len(indices), _AT_ONCE)]
        return torch.cat([run_table(table, self.predict(part), self.noise(part)) for part in parts])

    def recomputes(self, num_rows: int, batch_size: int) -> bool:
        """Whether the gradient of so many calls on so many samples takes more memory than it is worth."""
        x = self.noise(range(2))
        saved = saved_bytes(self.predict(range(2)), x, torch.zeros(2, device=self.device))
        return saved // 2 * batch_size * num_rows > _MAX_SAVED_BYTES

    def in_precision(self, dtype: torch.dtype) -> FittedNetwork:
        """The same network whose weights and arithmetic are of another type; x, t and predictions stay float32."""
        return replace(self, module=_Given(copy.deepcopy(self.module).to(dtype), dtype, torch.float32))

    def with_whole_timesteps(self) -> FittedNetwork:
        """The same network, given t as int64."""
        return replace(self, module=_Given(self.module, torch.float32, torch.int64))


class _Given(torch.nn.Module):
    """A network whose x and t are of these types."""

    def __init__(self, module: torch.nn.Module, x_type: torch.dtype, t_type: torch.dtype) -> None:
        super().__init__()
        self.module, self._x_type, self._t_type = module, x_type, t_type

    def forward(self, x: torch.Tensor, t: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
        prediction: torch.Tensor = self.module(x.to(self._x_type), t.to(self._t_type), *conditions)
        return prediction
