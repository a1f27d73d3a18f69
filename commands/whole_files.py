"""Files and folders that appear whole or not at all: temporary name, fsync, rename.

A temporary file or folder is locked by whoever writes it. One that nobody has locked was left by a program that was
killed, and whoever writes into its folder next removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from commands.errors import reason
from diffusion.errors import InputError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_INFIX, _RANDOM = ".ddpm-rt.", "x" * 8
_WORK = re.compile(r"ddpm-rt-work\.[a-z0-9_]{8}")
_TEMPORARY = re.compile(re.escape(".") + r".+" + re.escape(_INFIX) + r"[a-z0-9_]{8}(\..*)?", re.DOTALL)
# Of linux/fcntl.h and linux/fs.h.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
_CANNOT_CHMOD = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, else removed.

    Readers see the old file or the new one, never a part. The temporary name keeps the suffix, because
    writers such as PIL and NumPy choose a format by it.

    Raises:
        InputError: the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    temporary, descriptor = _make_temporary(path, is_folder=False)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        set_mode(temporary, 0o666 & ~_umask())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # a disk that fails: what is at `path` is whole all the same
            temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.close(descriptor)


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
            path.with_name(f".{path.name}{_INFIX}{_RANDOM}{path.suffix}").lstat()
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

    An existing `path` changes places with the new folder at once, where the file system can do that; elsewhere it is
    moved aside first. Where `path` is a link, the folder that it names is replaced.

    Raises:
        InputError: the parent folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    check_replaceable(path)
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    # Not by the process id alone: in a container that is started again it is the one of the process that was killed.
    aside = path.with_name(f".{path.name}.replaced.{secrets.token_hex(4)}")
    with temporary_folder(path) as temporary:
        try:
            yield temporary
            if not path.exists():
                temporary.replace(path)
            elif not exchange(temporary, path):
                path.replace(aside)
                temporary.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            raise cannot_write(path, error) from error
        finally:
            if not path.exists() and aside.exists():  # Ctrl-C, or an error, came in between
                aside.replace(path)
            shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside `path`; what has its name at the end is removed.

    Raises:
        InputError: the parent folder cannot be made or written.
    """
    temporary, descriptor = _make_temporary(path, is_folder=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    """Yield an empty folder in TMPDIR for the time of some work; those that killed programs left there are removed.

    Raises:
        InputError: none can be made.
    """
    made = None
    try:
        place = Path(tempfile.gettempdir())
        remove_abandoned(place, _WORK)
        while made is None:
            made = make_locked(place, "ddpm-rt-work.", "", is_folder=True)
    except OSError as error:
        raise InputError(
            f"no folder for temporary files can be made ({reason(error)}); make room, or set TMPDIR to another folder"
        ) from error
    folder, descriptor = made
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def exchange(first: Path, second: Path) -> bool:
    """Let two names change places at once, with renameat2; whether the file system can. Raises OSError as a rename."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:  # a C library that is not GNU's
        return False
    if not renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE):
        return True
    code = ctypes.get_errno()
    if code in _CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(second))


def check_room(path: Path, needed_bytes: int) -> None:
    """Raises InputError if the disk of an existing folder has less left than a file in it will take."""
    disk = shutil.disk_usage(path.parent)
    if disk.total and disk.free < needed_bytes:  # a file system of no size at all does not tell it
        raise InputError(
            f"{path}: needs about {needed_bytes / 1e6:.0f} MB, and {disk.free / 1e6:.0f} MB are left on that disk; "
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


def _make_temporary(path: Path, is_folder: bool) -> tuple[Path, int]:
    """Make an empty file or folder beside `path`, whose folder is made if missing.

    Returns:
        Its path, and the descriptor that holds its lock.

    Raises:
        InputError: the folder cannot be made or written, or `path` is no regular file or folder.
    """
    check_replaceable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            made = make_locked(path.parent, f".{path.name}{_INFIX}", path.suffix, is_folder)
            if made is not None:
                if is_folder:
                    set_mode(made[0], 0o777 & ~_umask())
                return made
    except OSError as error:
        raise InputError(
            f"{path}: its folder cannot be written ({error.strerror or error}); choose another place with --out"
        ) from error


def make_locked(folder: Path, prefix: str, suffix: str, is_folder: bool) -> tuple[Path, int] | None:
    """Make an empty file or folder with a random name, and lock it where the file system has locks.

    Returns:
        Its path and the descriptor that holds the lock; None if another program took it for abandoned meanwhile.
    """
    if is_folder:
        name = tempfile.mkdtemp(suffix, prefix, folder)
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return None
    else:
        descriptor, name = tempfile.mkstemp(suffix, prefix, folder)
    try:
        _try_to_lock(descriptor)
        if os.path.samestat(os.fstat(descriptor), Path(name).lstat()):
            return Path(name), descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _try_to_lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # there are no locks here, so nobody takes it for abandoned either
        pass


def remove_abandoned(folder: Path, name: re.Pattern[str] = _TEMPORARY) -> None:
    """Remove temporary files and folders that killed programs left in a folder.

    Args:
        folder: which.
        name: of what `make_locked` made, all of it.
    """
    with contextlib.suppress(OSError):  # a folder that cannot be listed: its writer says so
        for each in [Path(entry.path) for entry in os.scandir(folder) if name.fullmatch(entry.name)]:
            with contextlib.suppress(OSError):  # somebody is writing it, or it has gone, or there are no locks
                _remove_if_abandoned(each)


def _remove_if_abandoned(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    finally:
        os.close(descriptor)


def set_mode(path: Path, mode: int) -> None:
    """As `Path.chmod`, but nothing where a file system, such as FAT, has modes of its own that cannot be changed."""
    try:
        path.chmod(mode)
    except OSError as error:
        if error.errno not in _CANNOT_CHMOD:
            raise


def _umask() -> int:
    # os.umask can only be read by setting it, which other threads would see.
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    return next((int(line.split()[1], 8) for line in status.splitlines() if line.startswith("Umask:")), 0o022)


def sync_folder(folder: Path) -> None:
    """Make durable which names the folder holds: a rename is only then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of file systems that sync no folders, such as those shared with Windows
            raise
    finally:
        os.close(descriptor)
