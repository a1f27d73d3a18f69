"""No garbage collection inside TensorRT.

TensorRT calls our log, which is Python, while it holds a lock of its own. A collection that begins there and finds
another builder or runtime, left over in the traceback of an error, ends it; that waits for the same lock, and so for
ever.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python's collector from running within; a `with` block, or as a decorator a whole function."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
