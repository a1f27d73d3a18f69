"""How long the GPU was busy with something, by CUDA events: no launch's way from the host is counted twice."""

from __future__ import annotations

from collections.abc import Callable

from runtime.kernels_module import import_kernels


def elapsed_ms(stream: int, enqueue: Callable[[], None]) -> float:
    """Milliseconds on the stream between what was there and the end of what `enqueue` puts there.

    Args:
        stream: a `cudaStream_t`.
        enqueue: puts work on it, without waiting.

    Raises:
        RuntimeError: CUDA failed.
    """
    kernels = import_kernels()
    start, end = kernels.cuda_event_create(), kernels.cuda_event_create()
    try:
        kernels.cuda_event_record(start, stream)
        enqueue()
        kernels.cuda_event_record(end, stream)
        kernels.cuda_event_synchronize(end)
        milliseconds: float = kernels.cuda_event_elapsed_ms(start, end)
    finally:
        kernels.cuda_event_destroy(start)
        kernels.cuda_event_destroy(end)
    return milliseconds
