"""What is put on a CUDA stream, recorded as a graph instead of run."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from runtime.kernels_module import import_kernels


class CapturedGraph:
    """A `cudaGraph_t` that is destroyed with this object.

    Attributes:
        handle: the graph.
    """

    def __init__(self, handle: int) -> None:
        self.handle = handle
        # At the end of the process the driver frees everything, in an order of its own.
        weakref.finalize(self, import_kernels().cuda_graph_destroy, handle).atexit = False


def capture_graph(stream: int, enqueue: Callable[[int], None]) -> CapturedGraph:
    """Record one call of `enqueue(stream)`. Only what this thread does is restricted meanwhile.

    Args:
        stream: not the default one, with nothing on it.
        enqueue: puts work on the stream; must not wait, allocate or copy from pageable memory.

    Raises:
        RuntimeError: something in the call cannot be recorded, with CUDA's text. The stream can be used again.
    """
    kernels = import_kernels()
    kernels.cuda_begin_capture(stream)
    try:
        enqueue(stream)
    except BaseException:
        # The capture must be ended or the stream is lost; what it recorded, or why it broke, no longer matters.
        try:
            handle = kernels.cuda_end_capture(stream)
        except RuntimeError:
            pass
        else:
            kernels.cuda_graph_destroy(handle)
        raise
    return CapturedGraph(kernels.cuda_end_capture(stream))
