"""A batch of states for timing the step: the compiled one on any sampler's table, and PyTorch's for Algorithm 2."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from diffusion.samplers import DEFAULT_SAMPLER, make_table
from diffusion.step_table import COLUMNS
from runtime.kernels_module import import_kernels


class Step:
    """A batch in the middle of a chain, advanced by the compiled step or by PyTorch.

    Args:
        shape: (N, C, H, W).
        sampler: one of `diffusion.samplers.SAMPLERS`, with all 1,000 timesteps; PyTorch's side is `ddpm` alone.
    """

    def __init__(self, shape: tuple[int, int, int, int], sampler: str = DEFAULT_SAMPLER) -> None:
        num, channels, height, width = shape
        process = Process(SampleShape(channels, height, width), NoiseSchedule.make("linear"), clip_sample=1.0)
        self._table = table = make_table(process, sampler)
        rng = np.random.default_rng(0)
        self.coefficients, self.timesteps = table.cast(), table.timesteps.astype(np.int32)
        self.x = rng.normal(size=shape).astype(np.float32)
        self.prediction = rng.normal(size=shape).astype(np.float32)
        self.row = np.zeros(num, np.int32)
        self.flag = np.zeros(num, np.int32)
        self.seed, self.sample_index = np.zeros(num, np.uint64), np.arange(num, dtype=np.uint64)
        self.t = np.zeros(num, np.float32)
        self.histories = {name: np.zeros_like(self.x) for name in ("h1", "h2")[: table.histories]}
        self.x_torch, self.prediction_torch = torch.from_numpy(self.x.copy()), torch.from_numpy(self.prediction)
        self.torch_row = 0

    @property
    def adds_noise(self) -> bool:
        """Whether any row does."""
        return bool((self.coefficients[:, COLUMNS.index("s")] != 0).any())

    def compiled(self, isa: str, threads: int) -> Callable[[], None]:
        """A call that advances the batch by one row with the compiled step."""
        step = import_kernels().HostStep(
            self.coefficients, self.timesteps, histories=self._table.histories, learned=False,
            h2_is_x_start=self._table.h2_is_x_start, clip=1.0, x=self.x, prediction=self.prediction, t=self.t,
            row=self.row, flag=self.flag, seed=self.seed, sample_index=self.sample_index, isa=isa, threads=threads,
            **self.histories,
        )  # fmt: skip
        last = len(self.timesteps) - 1  # the last row adds no noise

        def run() -> None:
            if self.row[0] == last:
                self.row[:] = 0
            step.run()

        return run

    def pytorch(self, noise: torch.Tensor | None = None) -> None:
        """Advance the batch by one row with PyTorch; `noise` instead of its own, to compare."""
        values = self.coefficients[self.torch_row % (len(self.timesteps) - 1)].tolist()
        row = dict(zip(COLUMNS, values, strict=True))
        z = torch.randn_like(self.x_torch) if noise is None else noise
        x_start = (row["u"] * self.x_torch).add_(self.prediction_torch, alpha=row["v"]).clamp_(-1.0, 1.0)
        self.x_torch.mul_(row["a"]).add_(x_start, alpha=row["b"]).add_(z, alpha=row["s"])
        self.torch_row += 1
