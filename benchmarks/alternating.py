"""Times several things by turns, so that what disturbs the machine disturbs all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def time_alternately(
    candidates: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 5
) -> dict[str, list[float]]:
    """Run each candidate once per round; seconds of every run, by name.

    Args:
        candidates: what to run; each call is one measurement.
        rounds: measurements of each.
        warmup: runs of each before the first measurement.
    """
    for _ in range(warmup):
        for run in candidates.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def medians_ms(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each candidate, in milliseconds."""
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
