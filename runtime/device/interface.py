"""What the chain on a device needs of an engine and of the device's memory. Addresses and streams are integers."""

from __future__ import annotations

import abc
import functools
import weakref
from collections.abc import Callable
from typing import Protocol

import numpy as np

from commands.errors import reason
from diffusion.errors import InputError
from runtime.engines.interface import Engine
from runtime.formats.precision import ELEMENT_TYPES, to_element_type, to_float32


class DeviceMemory(Protocol):
    """Memory, streams and events of one GPU, in its primary context; PyCUDA or our own kernels allocate them."""

    name: str
    """For messages: whose allocator it is."""

    def allocate(self, size_bytes: int) -> int:
        """The address of new device memory, aligned to 256 bytes at least.

        Raises:
            InputError: there is not that much left.
        """

    def free(self, address: int) -> None:
        """Give back what `allocate` returned."""

    def free_bytes(self) -> int:
        """How much may still be allocated on the device."""

    def to_device(self, address: int, array: np.ndarray, stream: int) -> None:
        """Copy a C-contiguous array to the device; done when this returns."""

    def to_host(self, array: np.ndarray, address: int, stream: int) -> None:
        """Fill a C-contiguous array from the device, after what is on the stream; done when this returns."""

    def zero(self, address: int, size_bytes: int, stream: int) -> None:
        """Put the zeroing of memory on the stream."""

    def make_stream(self) -> int:
        """A new stream that does not wait for the default stream."""

    def free_stream(self, stream: int) -> None:
        """Give back what `make_stream` returned, with nothing on it: a chain that is closed has no use for its own."""

    def synchronize(self, stream: int) -> None:
        """Wait for the stream. Raises RuntimeError with CUDA's text if anything on it failed."""

    def is_done(self, stream: int) -> bool:
        """Whether nothing is left to do on the stream; does not wait."""


class DeviceCall(Protocol):
    """One network call on fixed device buffers."""

    def enqueue(self, stream: int) -> None:
        """Put one call on the stream, without waiting for it or for anything else.

        Raises:
            RuntimeError: the backend refused, with its own words.
        """

    def graph(self, stream: int) -> int | None:
        """A `cudaGraph_t` of exactly one call, owned by this object; None if the backend's call cannot be captured.

        The stream is one to capture on, with nothing on it. One call may be run before the capture: t must hold
        timesteps, and the prediction is written.

        Raises:
            RuntimeError: the call cannot be captured, with the reason.
        """


class DeviceEngine(Engine):
    """An ε-network on a GPU; called from the host, by `Engine.bind`, it copies."""

    io_type: str
    """Of x and of the prediction on the device: `float32`, `float16` or `bfloat16`."""

    t_type: str
    """Of t on the device: `float32` or `int64`."""

    memory: DeviceMemory
    """Where the chain's buffers are made too."""

    def call_bytes(self, batch_size: int) -> int:
        """Device memory that one bound call takes beside the weights and the buffers, in bytes; 0 if unknown."""
        return 0

    @abc.abstractmethod
    def bind_device(
        self, x: int, t: int, prediction: int, batch_size: int, stream: int, *conditions: int
    ) -> DeviceCall:
        """A call from and to buffers on the device: x [N, C, H, W], t [N], conditions → prediction [N, C or 2C, H, W].

        Conditions are of the process's types whatever `io_type` is, one address each, in its order.

        One engine may be bound several times; each call has state of its own and may run beside the others. Every
        address is a multiple of 256, which TensorRT demands of its tensors.

        Raises:
            InputError: a batch that the engine does not take.
        """

    @functools.cached_property
    def own_stream(self) -> int:
        """A stream of the engine's, for what is not part of a chain."""
        stream = self.memory.make_stream()
        # At the end of the process the driver frees everything, in an order of its own.
        weakref.finalize(self, self.memory.free_stream, stream).atexit = False
        return stream

    def _bind(
        self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray, *conditions: np.ndarray
    ) -> Callable[[], None]:
        return _HostCall(self, x, t, prediction, conditions).run


class _HostCall:
    """A call with buffers of NumPy, converted to the engine's types and copied to the device and back.

    Raises:
        InputError: a batch that the engine does not take, or not enough memory on the device.
    """

    def __init__(
        self,
        engine: DeviceEngine,
        x: np.ndarray,
        t: np.ndarray,
        prediction: np.ndarray,
        conditions: tuple[np.ndarray, ...],
    ) -> None:
        self._x, self._t, self._prediction, self._conditions = x, t, prediction, conditions
        self._engine = engine  # whose stream it is
        self._memory, self._stream = engine.memory, engine.own_stream
        self._io_type, host_type = engine.io_type, ELEMENT_TYPES[engine.io_type].host
        self._fed_x = x if host_type == np.float32 else np.zeros(x.shape, host_type)
        self._fed_t = t if engine.t_type == "float32" else np.zeros(t.shape, np.int64)
        self._found = prediction if host_type == np.float32 else np.zeros(prediction.shape, host_type)
        self._addresses: list[int] = []
        weakref.finalize(self, _free, self._memory.free, self._addresses).atexit = False
        for array in (self._fed_x, self._fed_t, self._found, *conditions):
            self._addresses.append(self._memory.allocate(array.nbytes))
            self._memory.zero(self._addresses[-1], array.nbytes, self._stream)
        at_x, at_t, at_prediction, *at_conditions = self._addresses
        self._call = engine.bind_device(at_x, at_t, at_prediction, len(x), self._stream, *at_conditions)

    def run(self) -> None:
        if self._fed_t is not self._t:
            np.copyto(self._fed_t, self._t, casting="unsafe")  # whole numbers
        if self._fed_x is not self._x:  # infinity and NaN are passed on, which the chain reports
            np.copyto(self._fed_x, to_element_type(self._x, self._io_type))
        at_x, at_t, at_prediction, *at_conditions = self._addresses
        fed = (self._fed_x, self._fed_t, *self._conditions)
        try:
            for address, array in zip((at_x, at_t, *at_conditions), fed, strict=True):
                self._memory.to_device(address, array, self._stream)
            self._call.enqueue(self._stream)
            self._memory.to_host(self._found, at_prediction, self._stream)
        except RuntimeError as error:
            raise InputError(
                f"{self._engine.name}, a batch of {len(self._x)}: the call failed ({reason(error)}); "
                "try a smaller `batch_size`"
            ) from error
        if self._found is not self._prediction:
            np.copyto(self._prediction, to_float32(self._found, self._io_type))


def _free(free: Callable[[int], None], addresses: list[int]) -> None:
    for address in addresses:
        free(address)


def too_little_memory(size_bytes: int, free_bytes: int) -> InputError:
    """The error of an allocation that did not fit."""
    return InputError(
        f"device memory: {mebibytes(size_bytes)} are needed and {mebibytes(free_bytes)} are free; "
        "use a smaller `batch_size`, or end what else runs on this GPU"
    )


def mebibytes(size_bytes: int) -> str:
    """For messages, such as `12.5 MiB` or `3.1 GiB`."""
    return f"{size_bytes / 2**20:.1f} MiB" if size_bytes < 2**30 else f"{size_bytes / 2**30:.1f} GiB"
