"""PyCUDA behind the `DeviceMemory` protocol. Imported only where PyCUDA is installed.

The primary context is retained, never made current by PyCUDA's `autoinit`, which makes a context of its own: it is
pushed before our calls and popped after them, so that no other library finds a context it does not expect.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from runtime.device.interface import too_little_memory

cuda: Any = importlib.import_module("pycuda.driver")

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream


def open_pycuda_memory(ordinal: int) -> PyCudaMemory:
    """The memory of one GPU. Raises RuntimeError if CUDA refuses."""
    try:
        cuda.init()
        return PyCudaMemory(cuda.Device(ordinal).retain_primary_context())
    except cuda.Error as error:
        raise RuntimeError(str(error)) from error


class PyCudaMemory:
    """A `DeviceMemory` that PyCUDA allocates.

    Args:
        context: the primary context of the GPU.
    """

    name = "PyCUDA"

    def __init__(self, context: Any) -> None:
        self._context = context
        # PyCUDA frees what is no longer referred to, so what others know as integers is kept here.
        self._allocations: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}

    def allocate(self, size_bytes: int) -> int:
        """As `DeviceMemory.allocate`."""
        with self._current():
            try:
                allocation = cuda.mem_alloc(size_bytes)
            except cuda.MemoryError as error:
                raise too_little_memory(size_bytes, cuda.mem_get_info()[0]) from error
        address = int(allocation)
        self._allocations[address] = allocation
        return address

    def free(self, address: int) -> None:
        """As `DeviceMemory.free`."""
        with self._current():
            self._allocations.pop(address).free()

    def free_bytes(self) -> int:
        """As `DeviceMemory.free_bytes`."""
        with self._current():
            return int(cuda.mem_get_info()[0])

    def to_device(self, address: int, array: np.ndarray, stream: int) -> None:
        """As `DeviceMemory.to_device`."""
        # On the stream: the call that takes none may return early, and no other stream would wait for its end.
        with self._current():
            cuda.memcpy_htod_async(address, array, self._streams[stream])
            self._streams[stream].synchronize()

    def to_host(self, array: np.ndarray, address: int, stream: int) -> None:
        """As `DeviceMemory.to_host`."""
        with self._current():
            cuda.memcpy_dtoh_async(array, address, self._streams[stream])
            self._streams[stream].synchronize()

    def zero(self, address: int, size_bytes: int, stream: int) -> None:
        """As `DeviceMemory.zero`."""
        with self._current():
            cuda.memset_d8_async(address, 0, size_bytes, self._streams[stream])

    def make_stream(self) -> int:
        """As `DeviceMemory.make_stream`."""
        with self._current():
            stream = cuda.Stream(_NON_BLOCKING)
        handle = int(stream.handle)
        self._streams[handle] = stream
        return handle

    def free_stream(self, stream: int) -> None:
        """As `DeviceMemory.free_stream`."""
        with self._current():
            del self._streams[stream]

    def synchronize(self, stream: int) -> None:
        """As `DeviceMemory.synchronize`."""
        with self._current():
            self._streams[stream].synchronize()

    def is_done(self, stream: int) -> bool:
        """As `DeviceMemory.is_done`."""
        with self._current():
            return bool(self._streams[stream].is_done())

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        except cuda.Error as error:  # of no kind that others know
            raise RuntimeError(str(error)) from error
        finally:
            cuda.Context.pop()
