"""No garbage collection inside TensorRT.

TensorRT calls our log, which is Python, while it holds a lock of its own. A collection that begins there and finds
another builder or runtime, left over in the traceback of an error, ends it; that waits for the same lock, and so for
ever.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_depth = 0
_was_enabled = False


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python's collector from running within; a `with` block, or as a decorator a whole function.

    It is the process's, so it comes back when the last thread is out.
    """
    global _depth, _was_enabled
    with _lock:
        if _depth == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0 and _was_enabled:
                gc.enable()
