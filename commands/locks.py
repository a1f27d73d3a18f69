"""One writer at a time: a lock beside what is written, which the operating system frees if its holder dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from commands.whole_files import remove_abandoned
from diffusion.errors import InputError

_SECONDS_BETWEEN_TRIES = 0.05
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_MAX_OWNER_BYTES = 32


class BusyError(InputError):
    """Another program is writing there."""


@contextlib.contextmanager
def sole_writer(path: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Be the only one who writes `path` and what belongs to it; the folder is made if missing.

    The lock is a hidden file beside it, which goes at the end, and which the operating system frees if we crash. What
    killed programs left half-written in the folder is removed.

    Args:
        path: that is to be written.
        wait_seconds: for another writer, which may be ending just now.

    Raises:
        InputError: another program is writing it, or the folder cannot be written.
    """
    descriptor = open_locked(path, fcntl.LOCK_EX, wait_seconds)
    try:
        remove_abandoned(path.parent)
        yield
    finally:
        try:
            remove_lock(descriptor, path)
        finally:
            os.close(descriptor)


def lock_place(path: Path) -> Path:
    """Where the lock of `path` is: its file is there while somebody writes."""
    return path.with_name(f".{path.name}.lock")


def open_locked(path: Path, kind: int, wait_seconds: float = 0.0) -> int:
    """The descriptor of the lock of `path`, locked.

    Args:
        path: that is to be written.
        kind: `fcntl.LOCK_EX` or `fcntl.LOCK_SH`.
        wait_seconds: for another writer.

    Raises:
        BusyError: another program is writing it.
        InputError: the folder cannot be written, its file system has no locks, or something else has the lock's name.
    """
    place, last = lock_place(path), time.monotonic() + wait_seconds
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = _open_lock(place)
            try:
                lock(descriptor, kind | fcntl.LOCK_NB, path)
                # Whoever held it before may have removed the name since: then this lock is of no file that others see.
                if _is_named(descriptor, place):
                    if kind == fcntl.LOCK_EX:
                        os.ftruncate(descriptor, 0)
                        os.pwrite(descriptor, str(os.getpid()).encode("ascii"), 0)
                    return descriptor
            except BlockingIOError:
                if time.monotonic() >= last:
                    owner = os.pread(descriptor, _MAX_OWNER_BYTES, 0).decode("ascii", "replace").strip()
                    os.close(descriptor)
                    raise BusyError(
                        f"{path}: another program is writing it (process {owner or 'unknown'}); wait for it, or choose "
                        "another place with --out"
                    ) from None
                time.sleep(_SECONDS_BETWEEN_TRIES)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
    except OSError as error:
        raise InputError(
            f"{path}: its folder cannot be written ({error.strerror}); choose another place with --out"
        ) from error


def lock(descriptor: int, kind: int, path: Path) -> None:
    """Lock the open lock file of `path`.

    Args:
        descriptor: of the file.
        kind: `fcntl.LOCK_EX` or `fcntl.LOCK_SH`, with `fcntl.LOCK_NB` not to wait.
        path: that is to be written.

    Raises:
        BlockingIOError: another program holds it.
        InputError: the lock cannot be had, as where a file system has none.
    """
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise InputError(
                f"{path}: its file system has no locks ({error.strerror}), so that two programs could write there at "
                "once; mount it with locks (Lustre: -o flock, NFS: with lockd), or choose another place with --out"
            ) from error
        raise InputError(f"{path}: cannot be locked ({error.strerror}); choose another place with --out") from error


def remove_lock(descriptor: int, path: Path) -> None:
    """Remove the name of the lock of `path`, which is held alone. It stays if it is another program's by now."""
    place = lock_place(path)
    with contextlib.suppress(OSError):  # a name that stays locks nothing
        if _is_named(descriptor, place):
            place.unlink()


def _open_lock(place: Path) -> int:
    """Open a lock's file, or make it. What has its name and was not made here is left as it is."""
    try:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise InputError(f"{place}: is not the lock that is expected there; remove it") from None
    found = os.fstat(descriptor)
    # Another user's file may be reached by a hard link; a lock holds a process id.
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or found.st_size > _MAX_OWNER_BYTES:
        os.close(descriptor)
        raise InputError(f"{place}: is not the lock that is expected there; remove it")
    return descriptor


def _is_named(descriptor: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), place.lstat())
    except FileNotFoundError:
        return False
