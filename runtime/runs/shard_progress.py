"""How far a run in shards is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from commands.program import say
from commands.progress import progress_bar

# A log gets a line at every tenth that takes some time, and after 30 seconds, in the course of days after 5 minutes.
_TENTHS, _BETWEEN_TENTHS, _MIN_SECONDS, _MAX_SECONDS = 10, 2.0, 30.0, 300.0


class RunProgress:
    """Counts network calls and images; used in a `with` block.

    Args:
        num: images of the run, or of the part of it that is drawn here.
        done: those among them that were there before.
        samples_per_call, steps: of a batch.
        calls: batches that are left to draw.
        now: the time in seconds.

    Attributes:
        drawn: images so far, without those that were there before.
    """

    def __init__(
        self,
        num: int,
        done: int,
        samples_per_call: int,
        steps: int,
        calls: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num, self._before, self._steps, self._now = num, done, steps, now
        self._batch, self._samples, self._all_samples = samples_per_call, 0, max(1, calls * steps * samples_per_call)
        self.drawn = 0
        self._in_steps, self._spent = 0.0, 0.0
        self._bar = progress_bar(calls * steps, "sampling", unit="step") if sys.stderr.isatty() else None
        self._began = self._said_at = now()
        self._said_tenth = 0

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif error is None and self.drawn:
            self._say()

    def step(self, samples_moved: int) -> None:
        """So many samples went one step further."""
        self._samples += samples_moved
        if self._bar is not None:
            self._bar.update(samples_moved / self._batch)
        else:
            self._say_if_it_is_time()

    def batch(self, num: int) -> None:
        """So many images are done; those of a batch, or found in what a killed program left."""
        self.drawn += num
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"{self._before + self.drawn:,} of {self._num:,} images, {self.rate:.3g}/s{self._share_in_words()}"
            )

    def spent(self, in_steps: float, seconds: float) -> None:
        """Of so many seconds of one that draws, these went into steps."""
        self._in_steps += in_steps
        self._spent += seconds

    @property
    def network_share(self) -> float:
        """Of the time of all that draw, what went into steps: network calls, and the update after each."""
        return self._in_steps / self._spent if self._spent else 0.0

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.drawn / max(1e-9, self._now() - self._began)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return self._now() - self._began

    def _say_if_it_is_time(self) -> None:
        tenth = _TENTHS * self._samples // self._all_samples
        pause = min(max(_MIN_SECONDS, self.seconds / 50.0), _MAX_SECONDS)
        since = self._now() - self._said_at
        if since >= pause or (since >= _BETWEEN_TENTHS and self._said_tenth < tenth < _TENTHS):
            self._said_tenth = tenth
            self._say()

    def _say(self) -> None:
        self._said_at = self._now()
        share = min(1.0, self._samples / self._all_samples)
        left = (
            ""
            if share == 0.0 or self._before + self.drawn >= self._num
            else f", {_duration(self.seconds * (1.0 - share) / share)} left"
        )
        say(
            f"sampling: {self._before + self.drawn:,} of {self._num:,} images, {self.rate:.3g} images/s, "
            f"{_duration(self.seconds)}{left}{self._share_in_words()}"
        )

    def _share_in_words(self) -> str:
        return f", network {self.network_share:.1%}" if self._spent else ""


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
