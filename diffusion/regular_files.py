"""Files of somebody else's: opened without waiting for anybody, regular ones alone, their size looked up before.

A pipe waits for its writer, `/dev/zero` has no end, and opening a device may already do something. So what a name
stands for is asked before it is opened, and once more of what was opened.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from diffusion.errors import InputError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path, remedy: str, missing: str | None = None) -> io.BufferedReader:
    """A regular file, open for reading.

    Args:
        path: of the file.
        remedy: the end of the line for one that cannot be used.
        missing: the same where there is no file; `remedy` if None.

    Raises:
        InputError: no file, something else than a regular one, or one that cannot be opened.
    """
    try:
        _check_regular(path, path.stat(), remedy)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            _check_regular(path, os.fstat(descriptor), remedy)
            return io.BufferedReader(io.FileIO(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
    except InputError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file; {missing or remedy}") from None
    except (OSError, ValueError) as error:  # a path with a NUL, or that is no text of any kind, is a ValueError
        raise unreadable(path, error, remedy) from None


def read_regular(path: Path, most_bytes: int, remedy: str, missing: str | None = None) -> bytes:
    """The content of a regular file that is no larger than it may be.

    Args:
        path, remedy, missing: as of `open_regular`.
        most_bytes: that it may have.

    Raises:
        InputError: as `open_regular`, or a file that is larger or cannot be read.
    """
    with open_regular(path, remedy, missing) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            content = b"" if size > most_bytes else file.read(most_bytes + 1)
        except OSError as error:
            raise unreadable(path, error, remedy) from None
    size = max(size, len(content))  # it may be growing
    if size > most_bytes:
        raise InputError(f"{path}: has {size} bytes, expected at most {most_bytes}; {remedy}")
    return content


def file_facts(found: os.stat_result) -> tuple[int, ...]:
    """Which file it is, its size and its times: what changes when it is written, or another takes its name."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def unreadable(path: Path, error: Exception, remedy: str) -> InputError:
    """The error for a file that the operating system does not let be read."""
    reason = getattr(error, "strerror", None) or error
    return InputError(f"{path}: cannot be read ({reason}); {remedy}")


def _check_regular(path: Path, facts: os.stat_result, remedy: str) -> None:
    if not stat.S_ISREG(facts.st_mode):
        kind = next((words for is_kind, words in _KINDS if is_kind(facts.st_mode)), "no file")
        raise InputError(f"{path}: is {kind}, expected a regular file; {remedy}")
