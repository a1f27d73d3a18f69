"""The signals that end a program. Each is an interruption, and the exit code says which one came."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_first: signal.Signals | None = None


@contextlib.contextmanager
def interruptions() -> Iterator[None]:
    """Let every one of `ENDING` raise KeyboardInterrupt; those that are ignored, as under nohup, stay so."""
    global _first
    _first = None
    with _handled(_interrupt, [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]):
        yield


@contextlib.contextmanager
def nothing_ends() -> Iterator[None]:
    """Ignore them for a moment: a program that says how it ended, or starts a child that its parent will end."""
    with _handled(signal.SIG_IGN, ENDING):
        yield


@contextlib.contextmanager
def _handled(handler: Any, numbers: Sequence[signal.Signals]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which alone may say how signals are handled
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def note_signal(number: int) -> None:
    """Remember the first one, for the exit code."""
    global _first
    _first = _first or signal.Signals(number)


def interrupted_code() -> int:
    """The exit code of an interrupted program: 128 + the number of the signal, of Ctrl-C where none was seen."""
    return 128 + (_first or signal.SIGINT)


def end_with_parent(parent: int) -> None:
    """Let the operating system kill this process when its parent is gone.

    Args:
        parent: its process id, which may be gone already.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _interrupt(number: int, frame: object) -> NoReturn:
    note_signal(number)
    raise KeyboardInterrupt
