"""Runs a function in a child process whose writing system calls are watched, and may be refused or be its last.

The kernel asks before each of them (seccomp's user notification), so libraries in C and Rust, their threads and further
children are seen as well as Python.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# Of linux/seccomp.h, linux/filter.h and linux/audit.h.
_SET_MODE_FILTER, _NEW_LISTENER, _NO_NEW_PRIVS = 1, 1 << 3, 38
_ALLOW, _NOTIFY, _CONTINUE = 0x7FFF0000, 0x7FC00000, 1
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_LOAD, _EQUALS, _RETURN = 0x20, 0x15, 0x06
_AT_FDCWD = -100

_SECCOMP = {"x86_64": 317, "aarch64": 277}
# Name → number by machine; None where there is none.
_CALLS: dict[str, tuple[int | None, int | None]] = {
    "write": (1, 64), "pwrite64": (18, 68), "writev": (20, 66), "pwritev": (296, 70), "ftruncate": (77, 46),
    "truncate": (76, 45), "fallocate": (285, 47), "sendfile": (40, 71), "copy_file_range": (326, 285),
    "fsync": (74, 82), "fdatasync": (75, 83), "flock": (73, 32), "fchmod": (91, 52), "open": (2, None),
    "creat": (85, None), "openat": (257, 56), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None),
    "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36),
    "chmod": (90, None), "fchmodat": (268, 53),
}  # fmt: skip
_WRITES = {"write", "pwrite64", "writev", "pwritev", "fallocate", "sendfile"}
_BY_DESCRIPTOR = _WRITES | {"ftruncate", "fsync", "fdatasync", "flock", "fchmod"}
# What takes room on a disk.
_MAKES = {"open", "creat", "openat", "mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat"}
_TAKES_ROOM = _WRITES | _MAKES | {"copy_file_range"}


def missing() -> str | None:
    """Why nothing can be watched here; None where it can."""
    if platform.machine() not in _SECCOMP:
        return f"no numbers of system calls for {platform.machine()}"
    try:
        return None if watched(lambda: 0, Path("/nowhere"), os.devnull).code == 0 else "seccomp does not answer"
    except OSError as error:
        return f"seccomp: {error.strerror}"


@dataclass(frozen=True)
class Fault:
    """What happens at a call that is counted.

    Attributes:
        at: place of the call, from 0.
        code: of the error that it returns; None for SIGKILL to the process instead.
        lasting: whether later calls that take room fail, too.
    """

    at: int
    code: int | None = None
    lasting: bool = False


@dataclass
class Outcome:
    """What a run did.

    Attributes:
        code: as `subprocess.Popen.returncode`.
        calls: name and path of each call that was counted.
        said: what was written to standard output and error.
    """

    code: int = 0
    calls: list[tuple[str, str]] = field(default_factory=list)
    said: str = ""


def watched(function: Callable[[], int], root: Path, said: str | Path, fault: Fault | None = None) -> Outcome:
    """Run a function in a child process.

    Args:
        function: returns the exit code.
        root: calls that write below this folder are counted.
        said: file for the standard output and error, not below `root`.
        fault: what to do at one of them.

    Raises:
        OSError: the kernel does not let itself be asked.
    """
    here, there = socket.socketpair()
    child = os.fork()
    if not child:
        _run_child(function, there, said)
    there.close()
    message, descriptors, _, _ = socket.recv_fds(here, 16, 1)
    here.close()
    if not descriptors:
        os.waitpid(child, 0)
        raise OSError(int(message), os.strerror(int(message)))
    outcome = Outcome()
    _supervise(child, descriptors[0], str(root.resolve()), fault, outcome)
    if Path(said).is_file():
        outcome.said = Path(said).read_text(errors="replace")
    return outcome


def _run_child(function: Callable[[], int], connection: socket.socket, said: str | Path) -> None:
    code = 1
    try:
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        try:
            listener = _install()
        except OSError as error:
            connection.send(str(error.errno).encode())
            os._exit(1)
        socket.send_fds(connection, [b"0"], [listener])
        os.close(listener)
        connection.close()
        code = function()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def _install() -> int:
    machine = platform.machine()
    column = list(_SECCOMP).index(machine)
    numbers = [numbers[column] for numbers in _CALLS.values() if numbers[column] is not None]
    lines = [(_LOAD, 0, 0, 0)]  # the number of the call
    lines += [(_EQUALS, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _NOTIFY)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    header = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener = libc.syscall(_SECCOMP[machine], _SET_MODE_FILTER, _NEW_LISTENER, ctypes.create_string_buffer(header))
    if listener < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(listener)


def _supervise(child: int, listener: int, root: str, fault: Fault | None, outcome: Outcome) -> None:
    column = list(_SECCOMP).index(platform.machine())
    names = {numbers[column]: name for name, numbers in _CALLS.items()}
    ended = os.pidfd_open(child)
    poll = select.poll()
    for descriptor in (listener, ended):
        poll.register(descriptor, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if ended in ready:
            break
        question = bytearray(80)
        try:
            fcntl.ioctl(listener, _RECEIVE, question)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):  # who asked is dead
                continue
            raise
        identity, process, _, number, _, _, *arguments = struct.unpack("QIIiIQ6Q", question)
        answer = _answer(child, process, names[number], arguments, root, fault, outcome)
        reply = struct.pack("Qqi", identity, 0, -answer) + struct.pack("I", 0 if answer else _CONTINUE)
        try:
            fcntl.ioctl(listener, _SEND, reply)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
    os.close(ended)
    os.close(listener)
    outcome.code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _answer(
    child: int, process: int, name: str, arguments: list[int], root: str, fault: Fault | None, outcome: Outcome
) -> int:
    """The number of the error that the call shall return; 0 to let it happen."""
    path = _path(process, name, arguments)
    if path is None or not (path == root or path.startswith(root + "/")):
        return 0
    number = len(outcome.calls)
    outcome.calls.append((name, path[len(root) + 1 :]))
    if fault is None or number < fault.at:
        return 0
    if number == fault.at:
        if fault.code is None:
            os.kill(child, signal.SIGKILL)
            return errno.EINTR
        return fault.code
    return fault.code or 0 if fault.lasting and takes_room(name) else 0


def takes_room(name: str) -> bool:
    """Whether a call needs room on the disk."""
    return name in _TAKES_ROOM


def _path(process: int, name: str, arguments: list[int]) -> str | None:
    """What a call writes to; None if it only reads, or if nobody knows."""
    try:
        if name in _BY_DESCRIPTOR:
            return str(Path(f"/proc/{process}/fd/{arguments[0]}").readlink())
        if name == "copy_file_range":
            return str(Path(f"/proc/{process}/fd/{arguments[2]}").readlink())
        place = 1 if name.endswith(("at", "at2")) else 0
        if name in ("open", "openat") and not arguments[place + 1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return None
        if name in ("symlink", "symlinkat", "link", "linkat"):
            place = {"symlink": 1, "symlinkat": 2, "link": 1, "linkat": 3}[name]
        text = _text(process, arguments[place])
        if not text.startswith("/"):
            folder = ctypes.c_int(arguments[place - 1]).value if "at" in name and place else _AT_FDCWD
            base = f"/proc/{process}/cwd" if folder == _AT_FDCWD else f"/proc/{process}/fd/{folder}"
            text = f"{Path(base).readlink()}/{text}"
    except OSError:
        return None
    return os.path.normpath(text)


def _text(process: int, address: int) -> str:
    memory = os.open(f"/proc/{process}/mem", os.O_RDONLY)
    try:
        found = b""
        while b"\0" not in found and len(found) < 4096:  # up to the end of a page, which may be the last one
            found += os.pread(memory, 4096 - (address + len(found)) % 4096, address + len(found))
    finally:
        os.close(memory)
    return os.fsdecode(found.partition(b"\0")[0])
