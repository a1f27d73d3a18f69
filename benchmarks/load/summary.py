"""What a load made of a service: latencies, and requests that were lost, answered twice or wrongly."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.load.clients import Outcome
from commands.program import Report


def summarize(outcomes: Sequence[Outcome], expected: Mapping[int, np.ndarray], wall_s: float) -> Report:
    """Figures of one load.

    Args:
        outcomes: of its requests.
        expected: steps → uint8 [n, H, W, C]: what the samples 0..n−1 must be; of none where nothing is known.
        wall_s: from the first request to the last answer.
    """
    answered = [each for each in outcomes if each.pixels is not None]
    watched = [each for each in answered if each.preview_s is not None]
    checked = [each for each in answered if each.number < len(expected.get(each.steps, ()))]
    copies = Counter(each.digest for each in answered)
    status = Counter(each.status for each in outcomes)
    return {
        "requests": len(outcomes),
        "answered": len(answered),
        "images_per_s": len(answered) / wall_s,
        "p50_s": _quantile(outcomes, 0.5),
        "p95_s": _quantile(outcomes, 0.95),
        "by_steps": {
            str(steps): {"p50_s": _quantile(those, 0.5), "p95_s": _quantile(those, 0.95)}
            for steps in sorted({each.steps for each in outcomes})
            if (those := [each for each in outcomes if each.steps == steps])
        },
        "first_preview_p50_s": _of([each.preview_s for each in watched if each.preview_s is not None], 0.5),
        "first_preview_p95_s": _of([each.preview_s for each in watched if each.preview_s is not None], 0.95),
        "first_preview_max_steps": max((each.preview_steps or 0 for each in watched), default=None),
        "not_answered_in_time": status[-1],
        "refused": sum(num for code, num in status.items() if code in (429, 503)),
        "failed": sum(num for code, num in status.items() if code > 0 and code not in (200, 429, 503)),
        "lost": status[0],
        "doubled": sum(num - 1 for num in copies.values()),
        "checked": len(checked),
        "wrong": sum(not _same(each, expected[each.steps][each.number]) for each in checked),
    }


def slope_per_minute(times_s: Sequence[float], values: Sequence[float]) -> float | None:
    """The least-squares slope, per minute; None of fewer than three values."""
    if len(times_s) < 3:
        return None
    return 60.0 * float(np.polyfit(times_s, values, 1)[0])


def _quantile(outcomes: Sequence[Outcome], part: float) -> float | None:
    """Of the latencies; requests without an answer took longer than any. None where one of those is the quantile."""
    return _of([each.seconds for each in outcomes], part)


def _of(seconds: Sequence[float], part: float) -> float | None:
    if not seconds:
        return None
    value = float(np.quantile(np.array(seconds), part, method="higher"))
    return value if math.isfinite(value) else None


def _same(outcome: Outcome, image: np.ndarray) -> bool:
    assert outcome.pixels is not None
    return np.array_equal(outcome.pixels.reshape(image.shape), image)
