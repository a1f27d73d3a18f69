"""The CUDA device in software as `DeviceMemory`, as the compiled module, and as the place where a network runs."""

from __future__ import annotations

import contextlib
import functools
import gc
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from diffusion.process import Process
from runtime.device.interface import DeviceEngine
from runtime.device.memory import KernelsMemory
from runtime.device.streams import capture_graph
from runtime.kernels_module import import_kernels
from tests.kernels.software_build import software_kernels
from tests.runtime.device.host_network import HostNetwork

TOTAL_BYTES = 1 << 24


class SoftwareKernels:
    """`runtime._kernels` as built with CUDA, its CUDA part on a new device in software.

    Args:
        seed: of the order in which blocks, threads and streams take turns.
    """

    def __init__(self, seed: int = 0) -> None:
        self._software = software_kernels()
        self._software.software_reset(TOTAL_BYTES, seed)

    def __getattr__(self, name: str) -> Any:
        if hasattr(self._software, name):
            return getattr(self._software, name)
        return getattr(import_kernels(), name)

    def state(self, name: str) -> int:
        """How many `streams`, `pending` pieces of work, `graphs`, `executables`, `events`, `allocations` there are,
        or how often a CUDA function was called, by its name."""
        return int(self._software.software_state().get(name, 0))

    def assert_sound(self) -> None:
        """No fault, and no promise broken."""
        fault, misuses = self._software.software_fault(), self._software.software_misuses()
        assert not fault, fault
        assert not misuses, misuses

    def assert_nothing_left(self) -> None:
        """Everything was given back."""
        names = ("streams", "pending", "graphs", "executables", "events", "allocations", "open_ranges")
        left = {name: self.state(name) for name in names if self.state(name)}
        assert not left, left


@contextlib.contextmanager
def software_device(test_name: str, monkeypatch: Any) -> Iterator[SoftwareKernels]:
    """A new device in place of CUDA, with an order of its own for each test; in the end it is sound and empty."""
    _spare_the_collector(test_name.partition("::")[0])
    kernels = SoftwareKernels(zlib.crc32(test_name.encode()))
    for place in ("runtime.chain.device", "runtime.device.streams"):
        monkeypatch.setattr(f"{place}.import_kernels", lambda: kernels)
    yield kernels
    gc.collect()
    kernels.assert_sound()
    kernels.assert_nothing_left()


@functools.lru_cache(maxsize=1)
def _spare_the_collector(test_file: str) -> None:
    """Once for each file: what is there by now is not looked at after every test."""
    gc.collect()
    gc.freeze()


class SoftwareMemory(KernelsMemory):
    """The real `KernelsMemory` of the device in software."""

    def __init__(self, kernels: SoftwareKernels) -> None:
        super().__init__(kernels)
        self.size_bytes = TOTAL_BYTES

    def resize(self, size_bytes: int) -> None:
        """Let the device have so much memory in all."""
        self.size_bytes = size_bytes
        self._kernels.software_set_total_bytes(size_bytes)


class DeviceNetwork(HostNetwork, DeviceEngine):
    """`HostNetwork` as a `DeviceEngine`: its twin in CUDA, tests/kernels/software_cuda/network.cpp.

    Args:
        memory: of the device.
        with_scratch: whether a call has a memset and a copy before its kernel; it takes memory for that.

    Attributes:
        captures: whether its calls can be captured: True, False, "fails", or "host nodes".
        bound: batch sizes, in the order of the calls that were bound.
        enqueued: how many calls were put on a stream or recorded.
    """

    def __init__(
        self,
        process: Process,
        memory: SoftwareMemory,
        io_type: str = "float32",
        t_type: str = "float32",
        batch_range: tuple[int, int | None] = (1, None),
        with_scratch: bool = False,
        **options: Any,
    ) -> None:
        self.memory, self.kernels = memory, memory._kernels
        super().__init__(process, **options)
        self.io_type, self.t_type = io_type, t_type
        self.with_scratch = with_scratch
        self.captures: bool | str = True
        self.bound: list[int] = []
        self.enqueued = 0
        self._batch_range = batch_range

    @property
    def broken(self) -> tuple[int, int] | None:
        """As `HostNetwork.broken`; the device's own are told."""
        return self._broken

    @broken.setter
    def broken(self, place: tuple[int, int] | None) -> None:
        self._broken = place
        self.kernels.software_break_at(*(place or (-1, 0)))

    def batch_range(self) -> tuple[int, int | None]:
        return self._batch_range

    def call_bytes(self, batch_size: int) -> int:
        return 1000 * batch_size

    def bind_device(
        self, x: int, t: int, prediction: int, batch_size: int, stream: int, label: int = 0, scale: int = 0
    ) -> DeviceNetworkCall:
        self.bound.append(batch_size)
        return DeviceNetworkCall(self, x, t, prediction, batch_size, label, scale)


class DeviceNetworkCall:
    """A `DeviceCall`."""

    def __init__(
        self, engine: DeviceNetwork, x: int, t: int, prediction: int, num: int, label: int, scale: int
    ) -> None:
        shape = engine.process.sample
        self._engine = engine
        self._scratch = engine.memory.allocate(4 * num * shape.num_elements) if engine.with_scratch else 0
        self._arguments = {
            **{"x": x, "t": t, "prediction": prediction, "scratch": self._scratch, "num_samples": num},
            **{"num_elements": shape.num_elements, "width": shape.width, "type": engine.io_type},
            **{"label": label, "scale": scale},
            "t_is_int64": engine.t_type == "int64",
            "wide": engine.process.prediction_channels == 2 * shape.channels,
        }
        self._captured = None

    def __del__(self) -> None:
        if self._scratch:
            self._engine.memory.free(self._scratch)

    def enqueue(self, stream: int) -> None:
        self._engine.enqueued += 1
        self._engine.kernels.software_network(**self._arguments, stream=stream)

    def graph(self, stream: int) -> int | None:
        if self._engine.captures is False:
            return None

        def enqueue(on: int) -> None:
            if self._engine.captures == "fails":
                self._engine.memory.synchronize(on)  # as a backend does that was not made for it
            if self._engine.captures == "host nodes":
                self._engine.kernels.software_host_node(on)
                self._engine.kernels.software_host_node(on)
            self.enqueue(on)

        self._engine.memory.synchronize(stream)
        self._captured = capture_graph(stream, enqueue)
        return self._captured.handle


def array_from(memory: SoftwareMemory, address: int, shape: tuple[int, ...], kind: type, stream: int) -> np.ndarray:
    """What lies on the device."""
    found = np.empty(shape, kind)
    memory.to_host(found, address, stream)
    return found
