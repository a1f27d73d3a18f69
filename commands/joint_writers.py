"""Several programs that write into one folder together, none of which may change what the folder is for."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from commands.locks import BusyError, lock, open_locked, remove_lock
from commands.whole_files import remove_abandoned

# The first of many that start together needs some milliseconds alone.
_WAIT_SECONDS = 5.0


@contextlib.contextmanager
def joint_writer(path: Path, prepare: Callable[[bool], None]) -> Iterator[None]:
    """Be one of the programs that write what belongs to `path`, at the same time.

    The lock is that of `commands.locks.sole_writer`: a sole writer and joint ones exclude each other.

    Args:
        path: of the file that says what the folder is for.
        prepare: called with True where nobody else writes, and may then write `path` itself; it is called with False
            when others may, in any case, and must then only check it.

    Raises:
        InputError: a sole writer is at work, the folder cannot be written, or as `prepare` does.
    """
    descriptor = None
    with contextlib.suppress(BusyError):  # which is said when the shared lock is not to be had either
        descriptor = open_locked(path, fcntl.LOCK_EX)
    alone = descriptor is not None
    if descriptor is None:
        descriptor = open_locked(path, fcntl.LOCK_SH, _WAIT_SECONDS)
    try:
        if alone:
            remove_abandoned(path.parent)
            prepare(True)
            # Not atomic: somebody else may be alone in between, and change it.
            lock(descriptor, fcntl.LOCK_SH, path)
        prepare(False)
        yield
    finally:
        try:
            with contextlib.suppress(OSError):  # others are at work: the last one removes the name
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_lock(descriptor, path)
        finally:
            os.close(descriptor)
