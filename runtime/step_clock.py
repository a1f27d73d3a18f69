"""Milliseconds per step of a run, without what only its beginnings take: compilation, first touches of memory."""

from __future__ import annotations

import time
from collections.abc import Callable


class StepClock:
    """Times the steps of batch after batch.

    The first step of every batch is left out: the libraries compile a network at its first call, and again at the first
    call of another batch size. Between two batches results are written, which is no step either.

    Args:
        steps_per_batch: of the chain.
        now: the time in seconds.

    Attributes:
        steps: that were seen.
    """

    def __init__(self, steps_per_batch: int, now: Callable[[], float] = time.perf_counter) -> None:
        self._steps_per_batch, self._now = steps_per_batch, now
        self._seconds, self._timed, self._last = 0.0, 0, now()
        self.steps = 0

    def step(self) -> None:
        """A step has ended."""
        now = self._now()
        if self.steps % self._steps_per_batch:
            self._seconds += now - self._last
            self._timed += 1
        self.steps += 1
        self._last = now

    def ms_per_step(self, seconds: float) -> float:
        """The mean; where no step but first ones was seen, that of `seconds` over all of them."""
        return 1e3 * self._seconds / self._timed if self._timed else 1e3 * seconds / max(1, self.steps)
