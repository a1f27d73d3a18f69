"""Any PyTorch network on a GPU, where the chain's buffers are: eager or compiled, launched or captured as a CUDA graph.

It needs PyTorch alone; nothing imports it before it is asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from diffusion.errors import InputError
from diffusion.process import Process
from runtime.device.interface import DeviceEngine, DeviceMemory
from runtime.engines.cache_folder import can_keep, user_cache_folder
from runtime.formats.precision import ENGINE_PRECISIONS, PRECISIONS

TORCH_TYPES = {name: getattr(torch, PRECISIONS[name].element_type.name) for name in ENGINE_PRECISIONS}

COMPILE_OPTIONS: dict[str, Any] = {
    "max_autotune": True,
    # Triton's convolutions with 8 warps were silently wrong up to PyTorch 2.12 (pytorch/pytorch#173068).
    "max_autotune_conv_backends": "ATEN",
    # It times one kernel after the other, which takes minutes for a U-Net and gains next to nothing.
    "coordinate_descent_tuning": False,
    # The graph is ours.
    "triton.cudagraphs": False,
}
"""What is asked of inductor."""

# The first call compiles, and times cuDNN's algorithms; the next ones settle the allocator.
_WARM_UP_CALLS = 3

_cudnn_flags = threading.RLock()
# A capture that fails leaves PyTorch's allocator in the state of a capture: the graph must not be destroyed, and
# another capture would find its memory pool still in use. So the first failure is the last capture of the process.
_failed_captures: list[torch.cuda.CUDAGraph] = []
_log = logging.getLogger(__name__)


class TorchModuleEngine(DeviceEngine):
    """A `runtime.device.interface.DeviceEngine` of any network in PyTorch.

    Args:
        network: (x [N, C, H, W], t int64 [N] and the process's conditions) → prediction [N, C or 2C, H, W]; it is moved
            and converted.
        process: what the network was trained to do.
        precision: of its arithmetic, one of `ENGINE_PRECISIONS`; fp32 is IEEE float32, without TF32.
        memory: of the GPU.
        sha256: of the network.
        compiled: whether torch.compile makes the kernels, anew for each batch size.
        device: where PyTorch runs.
    """

    t_type = "int64"

    def __init__(
        self,
        network: torch.nn.Module,
        process: Process,
        precision: str,
        memory: DeviceMemory,
        sha256: str,
        compiled: bool = False,
        device: str = "cuda",
    ) -> None:
        self.process, self.precision, self.memory, self.sha256 = process, precision, memory, sha256
        self.io_type = PRECISIONS[precision].element_type.name
        self.name = f"PyTorch {torch.__version__} ({device.upper()}, {precision}{', compiled' if compiled else ''})"
        self.compiled = compiled
        self._device = torch.device(device)
        # Tensor cores read 16-bit images channels last; converting at every convolution would cost as much as it.
        image_format = torch.contiguous_format if precision == "fp32" else torch.channels_last
        filling = _Filling(network, image_format).to(self._device, TORCH_TYPES[precision], memory_format=image_format)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the chains' streams do not wait for the one that made the weights
        self._run: Callable[..., None] = filling
        if compiled:
            keep_compiled_kernels()
            self._run = torch.compile(filling, options=COMPILE_OPTIONS, dynamic=False)

    def bind_device(self, x: int, t: int, prediction: int, batch_size: int, stream: int, *conditions: int) -> TorchCall:
        """As `DeviceEngine.bind_device`: PyTorch reads and writes the buffers themselves."""
        shape, kind = self.process.sample, TORCH_TYPES[self.precision]
        channels = self.process.prediction_channels
        tensors = (
            tensor_at(x, (batch_size, *shape.chw), kind, self._device),
            tensor_at(t, (batch_size,), torch.int64, self._device),
            tensor_at(prediction, (batch_size, channels, shape.height, shape.width), kind, self._device),
            *(
                tensor_at(address, (batch_size, *of.shape), getattr(torch, of.type), self._device)
                for of, address in zip(self.process.conditions, conditions, strict=True)
            ),
        )
        return TorchCall(self.name, self._run, tensors, self._device, self.memory)


class _Filling(torch.nn.Module):
    """A network that fills a buffer: compiled, the last kernel writes there."""

    def __init__(self, network: torch.nn.Module, image_format: torch.memory_format) -> None:
        super().__init__()
        self.network, self.image_format = network, image_format

    def forward(self, x: torch.Tensor, t: torch.Tensor, prediction: torch.Tensor, *conditions: torch.Tensor) -> None:
        prediction.copy_(self.network(x.contiguous(memory_format=self.image_format), t, *conditions))


def keep_compiled_kernels() -> None:
    """Let inductor keep what it compiles in the user's cache folder, unless the user chose another.

    Its default is a folder for temporary files, where compiling again costs minutes after the next restart.
    """
    if can_keep():
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache_folder("inductor")))


class TorchCall:
    """A `runtime.device.interface.DeviceCall`.

    Args:
        what: the engine, for messages.
        run: takes x, t, the prediction, which it fills, and the conditions.
        tensors: these, on the chain's buffers.
        device: of PyTorch.
        memory: to wait with.
    """

    def __init__(
        self,
        what: str,
        run: Callable[..., None],
        tensors: tuple[torch.Tensor, ...],
        device: torch.device,
        memory: DeviceMemory,
    ) -> None:
        self._what, self._run, self._tensors, self._device, self._memory = what, run, tensors, device, memory
        self._graph: torch.cuda.CUDAGraph | None = None

    def enqueue(self, stream: int) -> None:
        """Put one call on the stream.

        Raises:
            InputError: PyTorch found too little memory for the batch.
            RuntimeError: PyTorch refused.
        """
        with self._on(stream):
            self._run(*self._tensors)

    def graph(self, stream: int) -> int | None:
        """The `cudaGraph_t` of one call, captured by PyTorch, whose allocator must know of it; kept by this object.

        Raises:
            InputError: PyTorch found too little memory for the batch.
            RuntimeError: the call cannot be captured.
        """
        if self._device.type != "cuda":
            return None
        if self._graph is None:
            if _failed_captures:
                raise RuntimeError("an earlier capture failed in this process, and PyTorch cannot capture again in it")
            for _ in range(_WARM_UP_CALLS):
                self.enqueue(stream)
            self._memory.synchronize(stream)
            try:
                graph = torch.cuda.CUDAGraph(keep_graph=True)
            except TypeError:
                _log.warning("PyTorch %s keeps no graph that others can use; 2.8 and later do", torch.__version__)
                return None
            # On the chain's own stream: cuBLAS has a workspace for each, and two chains must not share one.
            on = torch.cuda.ExternalStream(stream, device=self._device)
            # Within `_on`, because a capture that fails does not give PyTorch its own stream back, and this one is the
            # chain's to destroy.
            try:
                with self._on(stream), torch.cuda.graph(graph, stream=on, capture_error_mode="thread_local"):
                    self._run(*self._tensors)
            except BaseException:
                _failed_captures.append(graph)
                raise
            self._graph = graph
        handle: int = self._graph.raw_cuda_graph()
        return handle

    @contextlib.contextmanager
    def _on(self, stream: int) -> Iterator[None]:
        with self._settings():
            if self._device.type == "cuda":
                with torch.cuda.stream(torch.cuda.ExternalStream(stream, device=self._device)):
                    yield
            else:
                self._memory.synchronize(stream)
                yield

    @contextlib.contextmanager
    def _settings(self) -> Iterator[None]:
        try:
            with torch.no_grad(), without_tf32(benchmark=True):
                yield
        except torch.OutOfMemoryError as error:
            num = len(self._tensors[0])
            text = " ".join(str(error).split()).partition(". ")[0]
            raise InputError(
                f"{self._what}: a batch of {num} does not fit ({text}); use a smaller `batch_size`"
            ) from error


@contextlib.contextmanager
def without_tf32(benchmark: bool = False) -> Iterator[None]:
    """Let cuDNN compute in float32: unless told otherwise it rounds the factors of convolutions to TF32.

    The setting is the process's. One thread at a time is within, or the first to leave would set it back for the rest.

    Args:
        benchmark: whether cuDNN times its algorithms.
    """
    # A limit of 0 means no limit: cuDNN times all of its algorithms, not the first ten.
    flags = {"enabled": True, "benchmark": benchmark, "benchmark_limit": 0, "allow_tf32": False}
    with _cudnn_flags, torch.backends.cudnn.flags(**flags):
        yield


def tensor_at(address: int, shape: tuple[int, ...], kind: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor on memory that somebody else holds, without a copy."""
    if device.type == "cpu":
        size = math.prod(shape) * kind.itemsize
        return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=kind).reshape(shape)
    # The interface has no bfloat16; the bits of either 16-bit type pass as integers.
    code = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "<i2", torch.int64: "<i8"}[kind]
    tensor = torch.as_tensor(_DeviceArray(address, shape, code), device=device)
    if tensor.data_ptr() != address:
        raise RuntimeError(f"PyTorch copied a buffer of {tuple(shape)} instead of using it where it is")
    return tensor.view(kind)


class _DeviceArray:
    def __init__(self, address: int, shape: tuple[int, ...], code: str) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": shape,
            "typestr": code,
            "data": (address, False),
            "version": 3,
        }
