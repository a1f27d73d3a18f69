"""Two programs that would write one file: the second is told at once, before either has worked for nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from diffusion.errors import InputError


@contextlib.contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Be the only one who writes `path` and what belongs to it; the folder is made if missing.

    The lock is a hidden file beside it, which goes at the end, and which the operating system frees if we crash.

    Raises:
        InputError: another program is writing it, or the folder cannot be written.
    """
    place = path.with_name(f".{path.name}.lock")
    descriptor = _open_locked(path, place)
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
        os.close(descriptor)


def check_room(path: Path, needed_bytes: int) -> None:
    """Raises InputError if the disk of an existing folder has less left than a file in it will take."""
    free = shutil.disk_usage(path.parent).free
    if free < needed_bytes:
        raise InputError(
            f"{path}: needs about {needed_bytes / 1e6:.0f} MB, and {free / 1e6:.0f} MB are left on that disk; "
            "make room, or choose another place with --out"
        )


def _open_locked(path: Path, place: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
                os.close(descriptor)
                raise InputError(
                    f"{path}: another program is writing it (process {owner or 'unknown'}); wait for it, or choose "
                    "another place with --out"
                ) from None
            # Whoever held it before may have removed the name since: then this lock is of no file that others see.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), place.stat()):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, str(os.getpid()).encode("ascii"), 0)
                    return descriptor
            os.close(descriptor)
    except OSError as error:
        raise InputError(
            f"{path}: its folder cannot be written ({error.strerror}); choose another place with --out"
        ) from error
