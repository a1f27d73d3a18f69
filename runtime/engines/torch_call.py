"""One call of a PyTorch network on device memory that somebody else holds, and its CUDA graph.

It needs PyTorch alone; nothing imports it before it is asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from diffusion.errors import InputError
from runtime.device.interface import DeviceMemory

# The first call compiles, and times cuDNN's algorithms; the next ones settle the allocator.
_WARM_UP_CALLS = 3

_cudnn_flags = threading.RLock()
_log = logging.getLogger(__name__)


class TorchCall:
    """A `runtime.device.interface.DeviceCall`.

    Args:
        what: the engine, for messages.
        run: takes x, t and the prediction, which it fills.
        tensors: these, on the chain's buffers.
        device: of PyTorch.
        memory: to wait with.
    """

    def __init__(
        self,
        what: str,
        run: Callable[..., None],
        tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
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
            with self._on(stream), torch.cuda.graph(graph, stream=on, capture_error_mode="thread_local"):
                self._run(*self._tensors)
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
                f"{self._what}: a batch of {num} does not fit ({text}); use a smaller --batch-size"
            ) from error


@contextlib.contextmanager
def without_tf32(benchmark: bool = False) -> Iterator[None]:
    """Let cuDNN compute in float32: unless told otherwise it rounds the factors of convolutions to TF32.

    The setting is the process's. One thread at a time is within, or the first to leave would set it back for the rest.

    Args:
        benchmark: whether cuDNN times its algorithms.
    """
    with _cudnn_flags, torch.backends.cudnn.flags(enabled=True, benchmark=benchmark, allow_tf32=False):
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
