"""Peers of our chains in PyTorch: diffusers' pipeline, and a loop with everything of a step in one CUDA graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from diffusion.samplers import make_table
from diffusion.step_table import COLUMNS
from runtime.device.interface import DeviceEngine
from runtime.engines.torch_call import TORCH_TYPES, without_tf32


class DiffusersSampler:
    """`DDPMPipeline` as a call; the images stay on the GPU until they are read.

    Args:
        folder: a checkpoint folder.
        precision: of the whole pipeline.
        batch_size, num_steps: of each call.
        compiled: whether its U-Net goes through torch.compile(mode="max-autotune"), channels last.
        device: where it runs.
    """

    def __init__(
        self, folder: Path, precision: str, batch_size: int, num_steps: int, compiled: bool, device: str = "cuda"
    ) -> None:
        from diffusers import DDPMPipeline

        pipeline: Any = DDPMPipeline.from_pretrained(folder, use_safetensors=True)
        self._pipeline = pipeline.to(device, TORCH_TYPES[precision])
        self._pipeline.set_progress_bar_config(disable=True)
        if compiled:
            self._pipeline.unet.to(memory_format=torch.channels_last)
            self._pipeline.unet = torch.compile(self._pipeline.unet, mode="max-autotune")
        self._batch_size, self._num_steps = batch_size, num_steps

    def __call__(self) -> torch.Tensor:
        """Images in [0, 1], [N, 3, H, W] on the CPU."""
        output = self._pipeline(
            batch_size=self._batch_size, num_inference_steps=self._num_steps, output_type="pt", return_dict=False
        )
        images: torch.Tensor = output[0].cpu()
        return images


class GraphLoop:
    """Ho et al. 2020, Algorithm 2: the network, the noise and the update in one CUDA graph, replayed for each step.

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
        process, kind = engine.process, TORCH_TYPES[engine.precision]
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
        with _settings(), torch.cuda.stream(self._stream):
            self._begin()
            for _ in range(3):
                self._step()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with _settings(), torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
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


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    with torch.no_grad(), without_tf32(benchmark=True):
        yield
