"""A command run in this process, and what may come of it: exit 0, 2, 3 or 4, one line of error, no file left."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

Main = Callable[[Sequence[str]], int]

EXIT_CODES = (0, 2, 3, 4)
INTERRUPTED = 130
# "train.run: …", or as argparse puts it where a module has no other name; a file's name ends in a suffix of its own.
_ERROR = r"(python -m )?(train|export|runtime|benchmarks)\.[a-z_]+: "
_TRACEBACK = "Traceback (most recent call last)"


class HangError(BaseException):
    """The command was told to stop and went on: no `except Exception` may hide it."""


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        argv: its arguments.
        code: its exit code.
        out, err: what it wrote, libraries written in C included.
        seconds: how long it took.
        interrupted: whether the harness sent it a Ctrl-C because it worked for too long.
        changed: files that it made, changed or removed, relative to the working folder.
    """

    argv: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float
    interrupted: bool
    changed: tuple[str, ...]

    def check(self, may_keep: Callable[[str], bool] = lambda name: False) -> None:
        """Raises AssertionError unless the command ended as every command must.

        Args:
            may_keep: says of a file's name whether a command that failed may leave it.
        """
        story = f"{list(self.argv)} ended with {self.code}\nstdout: {self.out[-2000:]}\nstderr: {self.err[-4000:]}"
        allowed = (*EXIT_CODES, INTERRUPTED) if self.interrupted else EXIT_CODES
        assert self.code in allowed, f"exit code {self.code}: {story}"
        if self.interrupted:
            return
        asked_for = "--debug" in self.argv
        assert asked_for or _TRACEBACK not in self.err + self.out, f"a traceback: {story}"
        if self.code == 0:
            return
        lines = [line for line in self.err.splitlines() if re.match(_ERROR, line)]
        assert len(lines) == 1, f"{len(lines)} lines of error: {story}"
        if self.code in (2, 4):
            assert self.err.splitlines()[-1] == lines[0], f"something after the line of error: {story}"
        kept = [name for name in self.changed if not may_keep(name)]
        assert not kept, f"left behind {kept}: {story}"


def run(main: Main, argv: Sequence[str], folder: Path, seconds: float = 20.0, grace: float = 20.0) -> Outcome:
    """Run `main(argv)` in `folder`; after `seconds` it is sent a Ctrl-C, and within `grace` another; then it hangs.

    Raises:
        HangError: it ended on neither.
        BaseException: whatever came out of it that is not an exit code.
    """
    before = _listing(folder)
    began = time.perf_counter()
    with _in_folder(folder), _captured() as captured, _alarm(seconds, grace) as alarms:
        try:
            code = main(list(argv))
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        except KeyboardInterrupt:
            if not alarms:
                raise
            code = INTERRUPTED  # outside of the command's own frame, where `python -m` ends with it too
    after = _listing(folder)
    changed = tuple(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)))
    seconds_taken = time.perf_counter() - began
    out, err = (file.getvalue() for file in captured)
    return Outcome(tuple(argv), code, out, err, seconds_taken, bool(alarms), changed)


def _listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            status = path.lstat()
            identity = (0, 0, 0) if name in folders else (status.st_ino, status.st_mtime_ns, status.st_size)
            found[str(path.relative_to(folder))] = identity
    return found


@contextlib.contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    back = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(back)


@contextlib.contextmanager
def _alarm(seconds: float, grace: float) -> Iterator[list[int]]:
    alarms: list[int] = []

    def ring(signum: int, frame: object) -> None:
        alarms.append(signum)
        # What is raised in a callback of the garbage collector or a destructor is lost, and no fault of the command.
        sys.unraisablehook = lambda unraisable: None
        signal.setitimer(signal.ITIMER_REAL, grace / 2)
        if len(alarms) > 2:
            raise HangError
        raise KeyboardInterrupt

    previous, hook = signal.signal(signal.SIGALRM, ring), sys.unraisablehook
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield alarms
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        sys.unraisablehook = hook


@contextlib.contextmanager
def _captured() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Everything that is written to file descriptors 1 and 2, by Python and by libraries, into two texts."""
    texts = io.StringIO(), io.StringIO()
    streams = sys.stdout, sys.stderr
    for stream in streams:
        stream.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        for descriptor, file in ((1, out), (2, err)):
            os.dup2(file.fileno(), descriptor)
        sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        try:
            yield texts
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(ValueError):
                    stream.flush()
            sys.stdout, sys.stderr = streams
            for descriptor, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)
            for file, text in ((out, texts[0]), (err, texts[1])):
                file.seek(0)
                text.write(file.read().decode("utf-8", "replace"))
