"""A process that is ended with everything that it started, also what has left its process group."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

_SET_CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
_GRACE_SECONDS = 2.0
# A process inside the driver may not end for minutes after SIGKILL.
_KILLED_SECONDS = 3.0


class ProcessGroup:
    """Starts a command in a session of its own; ends it, and what it left behind, at the end of a `with` block.

    What it started may begin a session of its own, as compilers' servers do, and outlive it. While one of these runs,
    this process inherits such orphans (Linux) and ends them by their process groups.

    Args:
        command, folder, environment: as `subprocess.Popen`'s.
        output: takes standard output and standard error.

    Attributes:
        stuck: pids that SIGKILL did not end in time; the kernel ends them when the driver lets go.
    """

    def __init__(self, command: Sequence[str], folder: Path, environment: dict[str, str], output: IO[bytes]) -> None:
        self.stuck: list[int] = []
        self._before = children()
        _inherit_orphans(True)
        self._process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            _signal_group(self._process.pid, signal.SIGTERM)
            self.poll(_GRACE_SECONDS)
        _signal_group(self._process.pid, signal.SIGKILL)
        if self.poll(_KILLED_SECONDS) is None:
            self.stuck.append(self._process.pid)
        self._end_orphans()
        _inherit_orphans(False)

    def poll(self, seconds: float) -> int | None:
        """The exit code, waited for so long; None if it still runs."""
        try:
            return self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None

    def _end_orphans(self) -> None:
        own = os.getpgid(0)
        for _ in range(8):  # each may leave children of its own
            orphans = children() - self._before - {self._process.pid}
            if not orphans:
                return
            for pid in orphans:
                with contextlib.suppress(ProcessLookupError):
                    group = os.getpgid(pid)
                    if group == own:
                        os.kill(pid, signal.SIGKILL)
                    else:
                        _signal_group(group, signal.SIGKILL)
            for pid in orphans:
                if not _reaped(pid, _KILLED_SECONDS):
                    self.stuck.append(pid)
                    self._before.add(pid)


def children() -> set[int]:
    """Pids of the processes whose parent is this one; empty where /proc does not tell."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # pid (name, with anything in it) state parent …
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(folder.name))
    return found


def exit_text(code: int) -> str:
    """An exit code as `subprocess` has it, for people."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _reaped(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                return True
        except ChildProcessError:  # somebody else has
            return True
        time.sleep(0.02)
    return False


def _signal_group(group: int, number: signal.Signals) -> None:
    # The process leads a group of its own, so the group has its number, also after it has ended.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _inherit_orphans(wanted: bool) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)
