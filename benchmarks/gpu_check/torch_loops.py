"""Loops that one writes in PyTorch: Algorithm 2 step by step, and with everything of a step inside a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu_check.module_engine import TYPES, inference_settings
from diffusion.samplers import make_table
from diffusion.step_table import COLUMNS
from runtime.device.interface import DeviceEngine

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class PlainLoop:
    """Ho et al. 2020, Algorithm 2, in eager PyTorch: what a sampling loop in Python looks like.

    Args:
        network: (x, t) → eps.
        process: of the network.
        batch_size, num_steps: of each chain.
        kind: of x and of the network.
    """

    def __init__(
        self, network: Network, process: Any, batch_size: int, num_steps: int, kind: torch.dtype, device: str = "cuda"
    ) -> None:
        table = make_table(process, num_steps=num_steps, spacing="leading")
        self._rows = [dict(zip(COLUMNS, row, strict=True)) for row in table.cast().tolist()]
        self._timesteps = torch.from_numpy(table.timesteps.copy()).to(device)
        self._network, self._clip = network, float(table.clip)
        self._shape, self._kind, self._device = (batch_size, *process.sample.chw), kind, device

    def __call__(self) -> torch.Tensor:
        """Images, [N, C, H, W] on the CPU."""
        with torch.inference_mode():
            return self._sample().cpu()

    def _sample(self) -> torch.Tensor:
        x = torch.randn(self._shape, dtype=self._kind, device=self._device)
        for row, timestep in zip(self._rows, self._timesteps, strict=True):
            prediction = self._network(x, timestep.expand(self._shape[0]))
            x_start = (row["u"] * x + row["v"] * prediction).clamp(-self._clip, self._clip)
            x = row["a"] * x + row["q"] * prediction + row["b"] * x_start
            if row["s"]:
                x = x + row["s"] * torch.randn_like(x)
        return x


class GraphLoop:
    """The same with the network, the noise and the update in one CUDA graph, replayed for each step.

    The strongest loop that PyTorch alone allows: nothing of a step runs on the host but one launch, the state stays in
    float32, and the update is one kernel of torch.compile.

    Args:
        engine: whose network is bound to this loop's own buffers.
        batch_size, num_steps: of each chain.
        compiled: whether torch.compile makes the update.
        device: where PyTorch runs.
    """

    def __init__(
        self, engine: DeviceEngine, batch_size: int, num_steps: int, compiled: bool = True, device: str = "cuda"
    ) -> None:
        process, kind = engine.process, TYPES[engine.io_type]
        table = make_table(process, num_steps=num_steps, spacing="leading")
        self._num_steps = num_steps
        shape = (batch_size, *process.sample.chw)
        self._coefficients = torch.from_numpy(table.cast()).to(device)
        # One more, which is read and not used after the last row.
        timesteps = torch.from_numpy(table.timesteps.copy()).to(device)
        self._timesteps = torch.cat([timesteps, timesteps[-1:]])
        self._x = torch.zeros(shape, device=device)
        self._fed = torch.zeros(shape, device=device, dtype=kind)
        self._t = torch.full((batch_size,), int(table.timesteps[0]), device=device, dtype=torch.int64)
        self._prediction = torch.zeros(shape, device=device, dtype=kind)
        self._row = torch.zeros(1, device=device, dtype=torch.int64)
        self._clip = float(table.clip)
        self._update: Callable[..., None] = torch.compile(update, dynamic=False) if compiled else update
        self._stream = torch.cuda.Stream()
        self._call = engine.bind_device(
            self._fed.data_ptr(), self._t.data_ptr(), self._prediction.data_ptr(), batch_size, self._stream.cuda_stream
        )
        self._graph = self._captured()

    def __call__(self) -> None:
        """Sample a batch and bring it to the CPU."""
        with torch.cuda.stream(self._stream):
            self._begin()
            for _ in range(self._num_steps):
                self._graph.replay()
            images = self._x.cpu()
        assert images.shape == self._x.shape

    def is_finite(self) -> bool:
        """Whether the last chain is."""
        self._stream.synchronize()
        return bool(torch.isfinite(self._x).all())

    def _captured(self) -> torch.cuda.CUDAGraph:
        self._stream.wait_stream(torch.cuda.current_stream())
        with inference_settings(), torch.cuda.stream(self._stream):
            self._begin()
            for _ in range(3):
                self._step()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with inference_settings(), torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._step()
        return graph

    def _begin(self) -> None:
        self._x.normal_()
        self._fed.copy_(self._x)
        self._row.zero_()
        self._t.copy_(self._timesteps[:1].expand_as(self._t))

    def _step(self) -> None:
        self._call.enqueue(self._stream.cuda_stream)
        noise = torch.randn_like(self._x)
        self._update(
            self._x, self._fed, self._prediction, noise, self._t, self._row, self._coefficients, self._timesteps,
            self._clip,
        )  # fmt: skip


def update(
    x: torch.Tensor,
    fed: torch.Tensor,
    prediction: torch.Tensor,
    noise: torch.Tensor,
    t: torch.Tensor,
    row: torch.Tensor,
    coefficients: torch.Tensor,
    timesteps: torch.Tensor,
    clip: float,
) -> None:
    """One row for every sample, in place: x, what the network is fed with next, t and the row's number."""
    u, v, a, q, b, s = (coefficients[row, COLUMNS.index(name)] for name in ("u", "v", "a", "q", "b", "s"))  # [1]
    p = prediction.to(torch.float32)
    x_start = (u * x + v * p).clamp(-clip, clip)
    following = a * x + q * p + b * x_start + s * noise
    x.copy_(following)
    fed.copy_(following)
    row.add_(1)
    t.copy_(timesteps[row].expand_as(t))
