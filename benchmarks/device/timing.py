"""How long the GPU is busy with something, by CUDA events, the launch's own way from the host left out."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, TracebackType

from runtime.device.interface import DeviceMemory

# Zeroing as much takes a few hundred microseconds on any GPU: time for the host to launch what is measured.
_LEAD_BYTES = 1 << 30


class StreamTimer:
    """Times work on streams, within a `with` block.

    The GPU is kept busy before the first event, so that what is measured is on the stream when its turn comes. Without
    that, an idle GPU waits for the first launch, and that wait would count.

    Args:
        kernels: the compiled module.
        memory: of the GPU; a part of what is free is taken.
    """

    def __init__(self, kernels: ModuleType, memory: DeviceMemory) -> None:
        self._kernels, self._memory = kernels, memory
        self._lead_bytes = max(1, min(_LEAD_BYTES, memory.free_bytes() // 4))
        self._lead = 0

    def __enter__(self) -> StreamTimer:
        self._lead = self._memory.allocate(self._lead_bytes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._memory.free(self._lead)

    def milliseconds(self, stream: int, enqueue: Callable[[], None]) -> float:
        """From the beginning to the end of what `enqueue` puts on a stream, without waiting.

        Raises:
            RuntimeError: CUDA failed.
        """
        kernels = self._kernels
        start, end = kernels.cuda_event_create(), kernels.cuda_event_create()
        try:
            self._memory.zero(self._lead, self._lead_bytes, stream)
            kernels.cuda_event_record(start, stream)
            enqueue()
            kernels.cuda_event_record(end, stream)
            kernels.cuda_event_synchronize(end)
            milliseconds: float = kernels.cuda_event_elapsed_ms(start, end)
        finally:
            kernels.cuda_event_destroy(start)
            kernels.cuda_event_destroy(end)
        return milliseconds
