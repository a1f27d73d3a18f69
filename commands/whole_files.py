"""Files that appear whole or not at all, by one writer at a time: temporary name, fsync, rename; and locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from diffusion.errors import InputError

_SECONDS_BETWEEN_TRIES = 0.05
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BusyError(InputError):
    """Another program is writing there."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, else removed.

    Readers see the old file or the new one, never a part. The temporary name keeps the suffix, because
    writers such as PIL and NumPy choose a format by it.

    Raises:
        InputError: the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    temporary = make_temporary_name(path)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # a disk that fails: what is at `path` is whole all the same
            temporary.unlink(missing_ok=True)


def check_name(path: Path) -> None:
    """Find out before any work that a file cannot be called so.

    Raises:
        InputError: it is a folder or no regular file, or its name or that of its temporary file is too long for the
            file system.
    """
    check_replaceable(path)
    try:
        is_folder = path.is_dir()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # which is said when it is written
            path.with_name(f".{path.name}.{'x' * 8}").lstat()
    except OSError as error:
        raise InputError(
            f"{path}: no file can have this name ({error.strerror or error}); choose another with --out"
        ) from error
    if is_folder:
        raise InputError(f"{path}: is a folder, expected the name of a file; choose another name with --out")


def check_replaceable(path: Path) -> None:
    """Find out that a rename to `path` replaces no device, pipe or socket: root would lose `/dev/null` itself.

    Raises:
        InputError: one of these is there, or a link to an open file such as `/dev/stdout`.
    """
    try:
        mode = path.stat().st_mode
        to_open_file = path.is_symlink() and path.readlink().is_relative_to("/proc")
    except (OSError, ValueError):
        return  # nothing is there; what is wrong with the name is said by who writes
    if to_open_file or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path}: is a device, a pipe or a socket, expected a regular file; choose another name")


def write_whole_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all. Raises InputError as `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes `path`'s place, else it is removed.

    An existing `path` is moved aside first and deleted only after the new folder stands.

    Raises:
        InputError: the parent folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    temporary = make_temporary_name(path)
    # Not by the process id alone: in a container that is started again it is the one of the process that was killed.
    aside = path.with_name(f".{path.name}.replaced.{secrets.token_hex(4)}")
    try:
        temporary.unlink()
        temporary.mkdir()
        yield temporary
        if path.exists():
            path.replace(aside)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if not path.exists() and aside.exists():  # Ctrl-C, or an error, came in between
            aside.replace(path)
        for left in (temporary, aside):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def sole_writer(path: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Be the only one who writes `path` and what belongs to it; the folder is made if missing.

    The lock is a hidden file beside it, which goes at the end, and which the operating system frees if we crash.

    Args:
        path: that is to be written.
        wait_seconds: for another writer, which may be ending just now.

    Raises:
        InputError: another program is writing it, or the folder cannot be written.
    """
    place = lock_place(path)
    descriptor = open_locked(path, fcntl.LOCK_EX, wait_seconds)
    try:
        yield
    finally:
        try:
            with contextlib.suppress(OSError):  # a name that stays locks nothing
                place.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def check_room(path: Path, needed_bytes: int) -> None:
    """Raises InputError if the disk of an existing folder has less left than a file in it will take."""
    free = shutil.disk_usage(path.parent).free
    if free < needed_bytes:
        raise InputError(
            f"{path}: needs about {needed_bytes / 1e6:.0f} MB, and {free / 1e6:.0f} MB are left on that disk; "
            "make room, or choose another place with --out"
        )


def cannot_write(path: Path, error: OSError, needed_bytes: int | None = None) -> InputError:
    """The error of a write that failed: a full disk, a quota, a limit on the size of files, a folder of others.

    Args:
        path: what was to be written.
        error: the operating system's.
        needed_bytes: that the file takes in all, where it is known.
    """
    room, remedy = "", "choose another place with --out"
    if error.errno in _NO_ROOM:
        remedy = f"make room, or {remedy}"
        if needed_bytes is not None:
            room = f": needs {needed_bytes / 1e6:.1f} MB"
            with contextlib.suppress(OSError):
                room += f", {shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free"
    return InputError(f"{path}: cannot be written ({error.strerror or error}{room}); {remedy}")


def make_temporary_name(path: Path) -> Path:
    """Create an empty file beside `path` (its folder is made if missing) and return its path.

    Raises:
        InputError: the folder cannot be made or written, or `path` is no regular file or folder.
    """
    check_replaceable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    except OSError as error:
        raise InputError(
            f"{path}: its folder cannot be written ({error.strerror or error}); choose another place with --out"
        ) from error
    os.close(descriptor)
    return Path(name)


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
        InputError: the folder cannot be written.
    """
    place, last = lock_place(path), time.monotonic() + wait_seconds
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
                os.close(descriptor)
                if time.monotonic() < last:
                    time.sleep(_SECONDS_BETWEEN_TRIES)
                    continue
                raise BusyError(
                    f"{path}: another program is writing it (process {owner or 'unknown'}); wait for it, or choose "
                    "another place with --out"
                ) from None
            try:
                # Whoever held it before may have removed the name since: then this lock is of no file that others see.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), place.stat()):
                        if kind == fcntl.LOCK_EX:
                            os.ftruncate(descriptor, 0)
                            os.pwrite(descriptor, str(os.getpid()).encode("ascii"), 0)
                        return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
    except OSError as error:
        raise InputError(
            f"{path}: its folder cannot be written ({error.strerror}); choose another place with --out"
        ) from error


def _umask() -> int:
    # os.umask can only be read by setting it, which other threads would see.
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    return next((int(line.split()[1], 8) for line in status.splitlines() if line.startswith("Umask:")), 0o022)


def sync_folder(folder: Path) -> None:
    """Make durable which names the folder holds: a rename is only then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
