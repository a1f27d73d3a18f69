"""An ε-network that runs on the host and on the device of `host_device`, with the same bits."""

from __future__ import annotations

from diffusion.process import Process
from runtime.device.capture import capture_graph
from tests.runtime.device.host_device import TYPES, HostDeviceMemory, array_at, as_float32, rounded
from tests.runtime.device.host_network import HostNetwork


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
