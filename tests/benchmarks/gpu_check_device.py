"""The device on the host, with what measurements need besides: copies, events, facts."""

from __future__ import annotations

import itertools
import time

import numpy as np

from benchmarks.gpu_check.context import StageContext
from runtime.kernels_module import import_kernels
from tests.runtime.device.host_device import HostDeviceMemory, HostKernels, array_at

L2_BYTES = 1 << 12


class MeasuringKernels(HostKernels):
    """Events are recorded when the stream gets to them, as on a GPU."""

    def __init__(self, streams) -> None:
        super().__init__(streams)
        self.HostStep = import_kernels().HostStep
        self.events: dict[int, float] = {}
        self._event_handles = itertools.count(0x7000)

    def cuda_copy(self, to, from_, size_bytes, stream) -> None:
        def copy() -> None:
            array_at(to, (size_bytes,), np.uint8)[:] = array_at(from_, (size_bytes,), np.uint8)

        self._streams.put(stream, copy)

    def cuda_event_create(self) -> int:
        handle = next(self._event_handles)
        self.events[handle] = 0.0
        return handle

    def cuda_event_destroy(self, event) -> None:
        del self.events[event]

    def cuda_event_record(self, event, stream) -> None:
        def record() -> None:
            self.events[event] = time.perf_counter()

        self._last_stream = stream
        self._streams.put(stream, record)

    def cuda_event_synchronize(self, event) -> None:
        self._streams.wait(self._last_stream)
        assert self.events[event]

    def cuda_event_elapsed_ms(self, start, end) -> float:
        return 1e3 * (self.events[end] - self.events[start])

    def cuda_device_facts(self, ordinal) -> dict[str, object]:
        return {"l2_bytes": L2_BYTES}

    def has_cuda_kernels(self) -> bool:
        return True


def device_context(monkeypatch, tmp_path, memory_bytes=1 << 24):
    """A stage's context on this device, and the findings as they were last published."""
    memory = HostDeviceMemory(memory_bytes)
    kernels = MeasuringKernels(memory.streams)
    for place in ("runtime.device_chain", "runtime.device.capture", "runtime.device.timing"):
        monkeypatch.setattr(f"{place}.import_kernels", lambda: kernels)
    findings = {}
    context = StageContext(tmp_path, findings.update)
    context.kernels, context.memory = kernels, memory
    return context, findings
