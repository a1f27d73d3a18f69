"""An ε-network that runs on the host and on the device of `host_device`, with the same bits."""

from __future__ import annotations

import numpy as np

from diffusion.process import Process
from runtime.device.capture import capture_graph
from tests.runtime.device.host_device import TYPES, HostDeviceMemory, array_at, as_float32, rounded


def network(x: np.ndarray, t: np.ndarray, channels: int) -> np.ndarray:
    """Something of x and t, float32 [N, channels, H, W]; no sample sees another."""
    t = t.astype(np.float32).reshape(-1, 1, 1, 1)
    prediction = np.float32(0.8) * x - np.float32(0.3) * np.roll(x, 1, axis=3) + np.float32(1e-4) * t
    return np.concatenate([prediction, np.tanh(prediction)], axis=1) if channels == 2 * x.shape[1] else prediction


class HostNetwork:
    """An `Engine`."""

    name, sha256, precision = "host", "0" * 64, "fp32"

    def __init__(self, process: Process, break_at: tuple[int, int] | None = None) -> None:
        self.process = process
        self._break_at = break_at  # sample slot and timestep at which the prediction becomes NaN

    def predict(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        prediction = network(x, t, self.process.prediction_channels)
        if self._break_at is not None:
            slot, timestep = self._break_at
            if slot < len(x) and t[slot] == timestep:
                prediction[slot, 0, 1, 1] = np.nan
        return prediction

    def bind(self, x, t, prediction):
        def call() -> None:
            prediction[:] = self.predict(x, t)

        return call


class DeviceNetwork(HostNetwork):
    """The same as a `DeviceEngine`.

    Attributes:
        captures: whether its calls can be captured: True, False, or "fails".
        bound: batch sizes, in the order of the calls that were bound.
    """

    def __init__(
        self,
        process: Process,
        io_type: str = "float32",
        t_type: str = "float32",
        memory: HostDeviceMemory | None = None,
        batch_range: tuple[int, int | None] = (1, None),
        **options,
    ) -> None:
        super().__init__(process, **options)
        self.io_type, self.t_type = io_type, t_type
        self.memory = memory or HostDeviceMemory()
        self.captures: bool | str = True
        self.bound: list[int] = []
        self.enqueued = 0
        self._batch_range = batch_range

    def batch_range(self):
        return self._batch_range

    def call_bytes(self, batch_size):
        return 1000 * batch_size

    def bind_device(self, x, t, prediction, batch_size, stream):
        self.bound.append(batch_size)
        return DeviceNetworkCall(self, x, t, prediction, batch_size)


class DeviceNetworkCall:
    """A `DeviceCall`."""

    def __init__(self, engine: DeviceNetwork, x: int, t: int, prediction: int, num: int) -> None:
        shape, io_type = engine.process.sample, TYPES[engine.io_type]
        self._engine = engine
        self._x = array_at(x, (num, *shape.chw), io_type)
        self._t = array_at(t, (num,), TYPES[engine.t_type])
        self._prediction = array_at(
            prediction, (num, engine.process.prediction_channels, shape.height, shape.width), io_type
        )
        self._captured = None

    def run(self) -> None:
        io_type = self._engine.io_type
        self._prediction[:] = rounded(self._engine.predict(as_float32(self._x, io_type), self._t), io_type)

    def enqueue(self, stream: int) -> None:
        self._engine.enqueued += 1
        self._engine.memory.streams.put(stream, self.run)

    def graph(self, stream: int) -> int | None:
        if self._engine.captures is False:
            return None

        def enqueue(on: int) -> None:
            if self._engine.captures == "fails":
                raise RuntimeError("operation not permitted when stream is capturing")
            self.enqueue(on)

        self._engine.memory.synchronize(stream)
        self._captured = capture_graph(stream, enqueue)
        return self._captured.handle
