"""One network call of TensorRT on fixed device buffers: enqueued, or captured as a CUDA graph."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from diffusion.errors import InputError
from runtime.device.interface import DeviceMemory
from runtime.engines.tensorrt_modules import Log, last_words


class TensorRtError(InputError, RuntimeError):
    """TensorRT refused; the message carries its own log lines."""


class TensorRtCall:
    """A `runtime.device.interface.DeviceCall`.

    Args:
        what: the engine and the batch, for messages.
        context: with shapes, addresses and memory set; used by this call alone.
        log: of the runtime that made it.
        memory: where its activations lie.
        workspace: their address; freed with this object, 0 for none.
        asks_first: whether the context says if it can be captured, as TensorRT-RTX's does; TensorRT's fails instead.
        kept: what must live as long as the context.
        after_first: called once, when the first enqueue has returned.
    """

    def __init__(
        self,
        what: str,
        context: Any,
        log: Log,
        memory: DeviceMemory,
        workspace: int,
        asks_first: bool,
        kept: object = None,
        after_first: Callable[[], None] | None = None,
    ) -> None:
        self._what, self._context, self._log, self._memory = what, context, log, memory
        self._execute: Callable[[int], bool] = context.execute_async_v3
        self._asks_first = asks_first
        self._kept, self._after_first = kept, after_first
        self._captured: Any = None
        if workspace:
            # At the end of the process the driver frees everything, in an order of its own.
            weakref.finalize(self, memory.free, workspace).atexit = False

    def enqueue(self, stream: int) -> None:
        """Put one call on the stream, without waiting for it.

        Raises:
            TensorRtError: TensorRT refused.
        """
        if not self._execute(stream):
            raise TensorRtError(f"{self._what}: TensorRT could not start it ({last_words(self._log)})")
        if self._after_first is not None:
            after_first, self._after_first = self._after_first, None
            after_first()

    def graph(self, stream: int) -> int | None:
        """A `cudaGraph_t` of one call, which this object keeps; None where TensorRT-RTX says that there can be none.

        The first call of a context compiles, allocates and copies, which a capture forbids: so one call is run before.
        It reads the buffers as they are; t must hold timesteps.

        Raises:
            TensorRtError: that call failed, or it cannot be captured.
        """
        from runtime.device.streams import capture_graph

        if self._captured is None:
            self.enqueue(stream)
            try:
                self._memory.synchronize(stream)
                if self._asks_first and not self._context.is_stream_capturable(stream):
                    return None
                self._captured = capture_graph(stream, self.enqueue)
            except TensorRtError:
                raise
            except RuntimeError as error:
                raise TensorRtError(f"{self._what}: {error} ({last_words(self._log)})") from error
        handle: int = self._captured.handle
        return handle
