"""Any PyTorch module as an engine on a GPU, so that chains can be run where diffusers is not installed.

The same way as `runtime.engines.torch_device` takes with a checkpoint: PyTorch reads and writes the chain's buffers,
and captures the call itself, since its allocator must know of the capture.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from diffusion.process import Process
from runtime.device.interface import DeviceMemory
from runtime.engines.host_call import bind_host

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_INTERFACE_CODES = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "<i2", torch.int64: "<i8"}
_WARM_UP_CALLS = 3


class ModuleEngine:
    """A `runtime.device.interface.DeviceEngine`.

    Args:
        module: (x [N, C, H, W], t int64 [N]) → prediction [N, C or 2C, H, W], in `io_type` and on `device`.
        process: of the network.
        io_type: of x and of the prediction.
        memory: of the GPU.
        name: for reports.
        compiled: whether torch.compile makes the kernels.
        device: where PyTorch runs.
    """

    t_type, sha256 = "int64", "0" * 64

    def __init__(
        self,
        module: torch.nn.Module,
        process: Process,
        io_type: str,
        memory: DeviceMemory,
        name: str,
        compiled: bool = False,
        device: str = "cuda",
    ) -> None:
        self.process, self.io_type, self.memory, self.name = process, io_type, memory, name
        self.precision = PRECISIONS[io_type]
        self._device = torch.device(device)
        self._stream: int | None = None
        image_format = torch.contiguous_format if io_type == "float32" else torch.channels_last

        def fill(x: torch.Tensor, t: torch.Tensor, prediction: torch.Tensor) -> None:
            prediction.copy_(module(x.contiguous(memory_format=image_format), t))

        self._run: Callable[..., None] = fill
        if self._device.type == "cuda":
            # The weights' last conversions may still be on PyTorch's own stream, for which a chain's does not wait.
            torch.cuda.synchronize(self._device)
        if compiled:
            self._run = torch.compile(fill, mode="max-autotune-no-cudagraphs", dynamic=False)

    def batch_range(self) -> tuple[int, int | None]:
        """Any batch."""
        return 1, None

    def call_bytes(self, batch_size: int) -> int:
        """Unknown."""
        del batch_size
        return 0

    def bind_device(self, x: int, t: int, prediction: int, batch_size: int, stream: int) -> ModuleCall:
        """As `DeviceEngine.bind_device`."""
        del stream
        shape, kind = self.process.sample, TYPES[self.io_type]
        channels = self.process.prediction_channels
        tensors = (
            tensor_at(x, (batch_size, *shape.chw), kind, self._device),
            tensor_at(t, (batch_size,), torch.int64, self._device),
            tensor_at(prediction, (batch_size, channels, shape.height, shape.width), kind, self._device),
        )
        return ModuleCall(self._run, tensors, self._device, self.memory)

    def bind(self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray) -> Callable[[], None]:
        """As `runtime.engines.interface.Engine.bind`: copies to and from the GPU around each call."""
        if self._stream is None:
            self._stream = self.memory.make_stream()
        return bind_host(self, x, t, prediction, self._stream)


class ModuleCall:
    """A `runtime.device.interface.DeviceCall`."""

    def __init__(
        self, run: Callable[..., None], tensors: tuple[torch.Tensor, ...], device: torch.device, memory: DeviceMemory
    ) -> None:
        self._run, self._tensors, self._device, self._memory = run, tensors, device, memory
        self._graph: torch.cuda.CUDAGraph | None = None

    def enqueue(self, stream: int) -> None:
        """As `DeviceCall.enqueue`."""
        with inference_settings(), self._on(stream):
            self._run(*self._tensors)

    def graph(self, stream: int) -> int | None:
        """As `DeviceCall.graph`."""
        if self._device.type != "cuda":
            return None
        if self._graph is None:
            for _ in range(_WARM_UP_CALLS):
                self.enqueue(stream)
            self._memory.synchronize(stream)
            graph = torch.cuda.CUDAGraph(keep_graph=True)
            on = torch.cuda.ExternalStream(stream, device=self._device)
            with inference_settings(), torch.cuda.graph(graph, stream=on, capture_error_mode="thread_local"):
                self._run(*self._tensors)
            self._graph = graph
        handle: int = self._graph.raw_cuda_graph()
        return handle

    @contextlib.contextmanager
    def _on(self, stream: int) -> Iterator[None]:
        if self._device.type != "cuda":
            self._memory.synchronize(stream)
            yield
            return
        with torch.cuda.stream(torch.cuda.ExternalStream(stream, device=self._device)):
            yield


@contextlib.contextmanager
def inference_settings() -> Iterator[None]:
    """No gradients; cuDNN's fastest algorithm, in IEEE float32 where the network is float32."""
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        yield


def tensor_at(address: int, shape: tuple[int, ...], kind: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor on memory that somebody else holds, without a copy.

    Raises:
        RuntimeError: PyTorch made a copy.
    """
    if device.type == "cpu":
        size = math.prod(shape) * kind.itemsize
        return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=kind).reshape(shape)
    tensor = torch.as_tensor(_DeviceArray(address, shape, _INTERFACE_CODES[kind]), device=device)
    if tensor.data_ptr() != address:
        raise RuntimeError(f"PyTorch copied a buffer of {shape} instead of using it where it is")
    return tensor.view(kind)


class _DeviceArray:
    def __init__(self, address: int, shape: tuple[int, ...], code: str) -> None:
        self.__cuda_array_interface__ = {"shape": shape, "typestr": code, "data": (address, False), "version": 3}
