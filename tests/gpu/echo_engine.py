"""The simplest network there is, on the device and on the host with the same bits: it predicts what it is given.

No library but the compiled kernels is needed, so a chain can be checked without PyTorch, and under tools that would
be slow with it. With a learned variance it predicts its input twice.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np

from diffusion.process import Process
from runtime.device.interface import DeviceEngine, DeviceMemory
from runtime.device.streams import CapturedGraph, capture_graph
from runtime.formats.precision import ELEMENT_TYPES, PRECISIONS, to_element_type, to_float32


class EchoEngine(DeviceEngine):
    """A `runtime.device.interface.DeviceEngine`, and an `Engine` for the host, where x is rounded as on the device.

    Args:
        process: of any shape.
        precision: of what it reads and writes on the device.
        t_type: as the protocol says.
        memory: of the GPU.
        kernels: the compiled module.
    """

    name, sha256 = "echo", "0" * 64

    def __init__(
        self, process: Process, precision: str, t_type: str, memory: DeviceMemory, kernels: ModuleType
    ) -> None:
        self.process, self.precision, self.t_type, self.memory = process, precision, t_type, memory
        self.io_type = PRECISIONS[precision].element_type.name
        self._kernels = kernels

    def bind_device(self, x: int, t: int, prediction: int, batch_size: int, stream: int, *conditions: int) -> EchoCall:
        """As `DeviceEngine.bind_device`."""
        sample_bytes = self.process.sample.num_elements * ELEMENT_TYPES[self.io_type].num_bytes
        repeats = self.process.prediction_channels // self.process.sample.channels
        return EchoCall(self._kernels, x, prediction, batch_size, sample_bytes, repeats)

    def _bind(
        self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray, *conditions: np.ndarray
    ) -> Callable[[], None]:
        """As `runtime.engines.interface.Engine.bind`."""
        channels = self.process.sample.channels

        def call() -> None:
            fed = x if self.io_type == "float32" else to_float32(to_element_type(x, self.io_type), self.io_type)
            for first in range(0, prediction.shape[1], channels):
                prediction[:, first : first + channels] = fed

        return call


class EchoCall:
    """A `runtime.device.interface.DeviceCall`: copies on the stream, one or two for each sample."""

    def __init__(
        self, kernels: ModuleType, x: int, prediction: int, batch_size: int, sample_bytes: int, repeats: int
    ) -> None:
        self._kernels = kernels
        self._copies = [
            (prediction + (repeats * sample + repeat) * sample_bytes, x + sample * sample_bytes)
            for sample in range(batch_size)
            for repeat in range(repeats)
        ]
        self._sample_bytes = sample_bytes
        self._captured: CapturedGraph | None = None

    def enqueue(self, stream: int) -> None:
        """As `DeviceCall.enqueue`."""
        for to, from_ in self._copies:
            self._kernels.cuda_copy(to, from_, self._sample_bytes, stream)

    def graph(self, stream: int) -> int | None:
        """As `DeviceCall.graph`."""
        if self._captured is None:
            self._captured = capture_graph(stream, self.enqueue)
        return self._captured.handle
