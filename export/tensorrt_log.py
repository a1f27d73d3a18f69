"""What TensorRT says: errors are kept for our own messages, the rest is printed on request."""

from __future__ import annotations

from typing import Any

from commands.program import say


def make_log(trt: Any, title: str, verbose: bool) -> Any:
    """A logger with the attributes `errors`, all error lines, and `last`, the last of them or an empty text.

    Args:
        trt: the module, whose own class a logger must extend.
        title: put before each line that is printed.
        verbose: print everything; else nothing, since errors are raised with what was said.
    """

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        @property
        def last(self) -> str:
            return self.errors[-1] if self.errors else ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)
            if verbose:
                say(f"{title}: {getattr(severity, 'name', severity)}: {message}")

    return Log()
