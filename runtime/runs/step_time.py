"""How much of the time of whoever draws goes into steps, each of which is a network call."""

from __future__ import annotations

import time
from collections.abc import Callable


class StepTime:
    """Two clocks: one runs always, the other between the beginning of a batch and its last step.

    Args:
        now: the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._began = self._last = now()
        self._in_steps = 0.0

    def step(self) -> None:
        """A step has ended: it took the time since the last call."""
        now = self._now()
        self._in_steps += now - self._last
        self._last = now

    def other(self) -> None:
        """Something else has ended, such as a file's writing, which took the time since the last call."""
        self._last = self._now()

    def taken(self) -> tuple[float, float]:
        """Seconds in steps, and all seconds, since this was asked last."""
        now = self._now()
        taken = self._in_steps, now - self._began
        self._in_steps, self._began = 0.0, now
        return taken
