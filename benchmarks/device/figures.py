"""The arithmetic of the measurements: bytes, bandwidths, overheads, ratios. Nothing here knows of a device."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.formats.precision import ELEMENT_TYPES

CACHE_MULTIPLE = 8
"""A working set of so many times the L2 cache is not served from it."""


def moved_bytes_per_element(histories: int, prediction_type: str) -> int:
    """Bytes that a step must read and write for one element.

    x is read and written in float32, and so is each history; the prediction is read; where the network reads another
    type than float32, its next input is written. 12, 20 and 28 in float16 with 0, 1 and 2 histories.
    """
    prediction = ELEMENT_TYPES[prediction_type].num_bytes
    next_input = prediction if prediction_type != "float32" else 0
    return 8 + prediction + next_input + 8 * histories


def resident_bytes_per_element(histories: int, prediction_type: str) -> int:
    """Bytes that a step's buffers take for one element: its working set."""
    prediction = ELEMENT_TYPES[prediction_type].num_bytes
    next_input = prediction if prediction_type != "float32" else 0
    return 4 + prediction + next_input + 4 * histories


def samples_beyond_cache(l2_bytes: int, elements_per_sample: int, bytes_per_element: int) -> int:
    """How many samples make a working set of at least `CACHE_MULTIPLE` times the L2 cache."""
    return max(1, math.ceil(CACHE_MULTIPLE * l2_bytes / (elements_per_sample * bytes_per_element)))


def gb_per_s(num_bytes: float, milliseconds: float) -> float:
    """10⁹ bytes a second."""
    return num_bytes / milliseconds / 1e6


def bandwidth_figures(num_bytes: int, milliseconds: Sequence[float]) -> dict[str, float]:
    """The median, the least and the greatest bandwidth of several measurements."""
    return {
        "gb_per_s": gb_per_s(num_bytes, statistics.median(milliseconds)),
        "gb_per_s_min": gb_per_s(num_bytes, max(milliseconds)),
        "gb_per_s_max": gb_per_s(num_bytes, min(milliseconds)),
    }


@dataclass(frozen=True)
class Overhead:
    """What a chain costs beyond its network.

    Attributes:
        network_ms_per_step, chain_ms_per_step: medians.
        us_per_step: the median of the differences, pair by pair, in microseconds.
        ratio: the median of the ratios, pair by pair; with the least and the greatest of them.
    """

    network_ms_per_step: float
    chain_ms_per_step: float
    us_per_step: float
    ratio: float
    ratio_min: float
    ratio_max: float


def overhead(network_ms: Sequence[float], chain_ms: Sequence[float], num_steps: int) -> Overhead:
    """Compare a chain of `num_steps` with as many calls of its network, both measured by turns.

    Pair by pair, so that a GPU whose clock drifts disturbs both sides of every difference and ratio.
    """
    pairs = list(zip(network_ms, chain_ms, strict=True))
    ratios = [chain / network for network, chain in pairs]
    return Overhead(
        network_ms_per_step=statistics.median(network_ms) / num_steps,
        chain_ms_per_step=statistics.median(chain_ms) / num_steps,
        us_per_step=statistics.median(1e3 * (chain - network) / num_steps for network, chain in pairs),
        ratio=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
    )


def median_ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """How many times faster ours is: the median of the ratios, pair by pair."""
    return statistics.median(their / our for their, our in zip(theirs, ours, strict=True))


def rounds_within(seconds_each: float, budget_seconds: float, most: int, least: int = 3) -> int:
    """How many rounds fit into a budget, an odd number so that the median is one of them."""
    fitting = int(budget_seconds / max(seconds_each, 1e-9))
    rounds = max(least, min(most, fitting))
    return rounds if rounds % 2 else rounds - 1 if rounds > least else rounds + 1
