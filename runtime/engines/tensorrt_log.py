"""TensorRT's own words: it returns None or False and says why only in its log."""

from __future__ import annotations

from collections import deque
from types import ModuleType
from typing import Any, Protocol

from commands.program import say

_MAX_LINES = 50
_MAX_CHARACTERS = 600


class Log(Protocol):
    """A logger of a TensorRT module that collects instead of printing."""

    errors: deque[str]
    """The latest errors, oldest first."""

    warnings: deque[str]
    """The latest warnings, oldest first."""

    @property
    def last(self) -> str:
        """The last error, or an empty text."""
        ...


def collecting_log(module: ModuleType, print_as: str | None = None) -> Any:
    """A `Log` that the module's `Runtime` and `Builder` take; it must live as long as whatever was made with it.

    Args:
        module: `tensorrt`, `tensorrt_lean` or `tensorrt_rtx`; each wants a logger of its own base class.
        print_as: print everything too, with this before each line; None to print nothing.
    """
    base: Any = module.ILogger

    class CollectingLog(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.errors: deque[str] = deque(maxlen=_MAX_LINES)
            self.warnings: deque[str] = deque(maxlen=_MAX_LINES)

        @property
        def last(self) -> str:
            return self.errors[-1] if self.errors else ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (base.Severity.INTERNAL_ERROR, base.Severity.ERROR):
                self.errors.append(msg)
            elif severity == base.Severity.WARNING:
                self.warnings.append(msg)
            if print_as is not None:
                say(f"{print_as}: {getattr(severity, 'name', severity)}: {msg}")

    return CollectingLog()


def last_words(log: Log) -> str:
    """The errors since the last call on one line, or the warnings where there are none; both are cleared."""
    lines = list(log.errors) or list(log.warnings)
    log.errors.clear()
    log.warnings.clear()
    text = "; ".join(" ".join(line.split()) for line in lines)
    if len(text) > _MAX_CHARACTERS:
        text = text[:_MAX_CHARACTERS] + "…"
    return text or "its log is empty"
