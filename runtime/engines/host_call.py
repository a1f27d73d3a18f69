"""A device engine under the host's interface: buffers of NumPy, copied to and from the GPU around each call."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np

from commands.errors import reason
from diffusion.errors import InputError
from runtime.device.interface import DeviceCall, DeviceEngine
from runtime.formats.precision import ELEMENT_TYPES, to_element_type, to_float32


def bind_host(
    engine: DeviceEngine, x: np.ndarray, t: np.ndarray, prediction: np.ndarray, stream: int
) -> Callable[[], None]:
    """As `runtime.engines.interface.Engine.bind`: float32 arrays on the host, converted to the engine's types.

    Args:
        engine: on the device.
        x, t, prediction: float32 [N, C, H, W], [N], [N, C or 2C, H, W].
        stream: for the copies and the call.

    Raises:
        InputError: a batch that the engine does not take, or not enough memory on the device.
    """
    return _HostCall(engine, x, t, prediction, stream).run


class _HostCall:
    def __init__(self, engine: DeviceEngine, x: np.ndarray, t: np.ndarray, prediction: np.ndarray, stream: int) -> None:
        self._x, self._t, self._prediction = x, t, prediction
        self._engine = engine  # whose stream it may be
        self._memory, self._stream = engine.memory, stream
        self._what = f"{engine.name}, a batch of {len(x)}"
        self._io_type, host_type = engine.io_type, ELEMENT_TYPES[engine.io_type].host
        self._fed_x = x if host_type == np.float32 else np.zeros(x.shape, host_type)
        self._fed_t = t if engine.t_type == "float32" else np.zeros(t.shape, np.int64)
        self._found = prediction if host_type == np.float32 else np.zeros(prediction.shape, host_type)
        self._addresses: list[int] = []
        weakref.finalize(self, _free, self._memory.free, self._addresses).atexit = False
        for array in (self._fed_x, self._fed_t, self._found):
            self._addresses.append(self._memory.allocate(array.nbytes))
            self._memory.zero(self._addresses[-1], array.nbytes, stream)
        at_x, at_t, at_prediction = self._addresses
        self._call: DeviceCall = engine.bind_device(at_x, at_t, at_prediction, len(x), stream)

    def run(self) -> None:
        if self._fed_t is not self._t:
            np.copyto(self._fed_t, self._t, casting="unsafe")  # whole numbers
        if self._fed_x is not self._x:  # infinity and NaN are passed on, which the chain reports
            np.copyto(self._fed_x, to_element_type(self._x, self._io_type))
        at_x, at_t, at_prediction = self._addresses
        try:
            self._memory.to_device(at_x, self._fed_x, self._stream)
            self._memory.to_device(at_t, self._fed_t, self._stream)
            self._call.enqueue(self._stream)
            self._memory.to_host(self._found, at_prediction, self._stream)
        except RuntimeError as error:
            raise InputError(f"{self._what}: the call failed ({reason(error)}); try a smaller --batch-size") from error
        if self._found is not self._prediction:
            np.copyto(self._prediction, to_float32(self._found, self._io_type))


def _free(free: Callable[[int], None], addresses: list[int]) -> None:
    for address in addresses:
        free(address)
