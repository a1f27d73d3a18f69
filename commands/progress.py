"""Progress: a bar on a terminal; elsewhere nothing, or a line now and then for what takes hours."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

# Seconds between two lines: a fiftieth of the time so far, within these, so that a log of days stays short.
_MIN_SECONDS, _MAX_SECONDS = 10.0, 300.0


def progress_bar(
    total: int, description: str, unit: str = "it", lines_in_a_log: bool = False, initial: int = 0, **options: Any
) -> Any:
    """A tqdm bar on standard error, where that is a terminal.

    Args:
        total, description, unit, initial, options: as tqdm's.
        lines_in_a_log: print a line every 10 seconds to 5 minutes where standard error is no terminal.
    """
    if lines_in_a_log and not sys.stderr.isatty():
        return ProgressLines(total, description, unit, initial)
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        initial=initial,
        file=sys.stderr,
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
        **options,
    )


class ProgressLines:
    """What a log gets in place of a bar: `train digits: 300 of 1,500 steps, 20 s, loss 0.1`.

    The methods are tqdm's, as far as they are used here.
    """

    def __init__(self, total: int, description: str, unit: str, initial: int = 0) -> None:
        self.n = initial
        self._total, self._description, self._unit = total, description, unit
        self._postfix = ""
        self._began = self._printed_at = time.monotonic()

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if error is None:
            self._print()

    def update(self, n: int = 1) -> None:
        """Count on; print a line if it is time."""
        self.n += n
        now = time.monotonic()
        if now - self._printed_at >= min(max(_MIN_SECONDS, (now - self._began) / 50.0), _MAX_SECONDS):
            self._print()

    def set_postfix_str(self, text: str = "", refresh: bool = True) -> None:
        """What stands at the end of the next lines."""
        self._postfix = f", {text}" if text else ""

    def _print(self) -> None:
        self._printed_at = time.monotonic()
        seconds = self._printed_at - self._began
        print(
            f"{self._description}: {self.n:,} of {self._total:,} {self._unit}s, {seconds:.0f} s{self._postfix}",
            file=sys.stderr,
            flush=True,
        )
