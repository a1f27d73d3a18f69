"""The arithmetic of the stages: bytes, bandwidths, overheads, targets. Nothing here knows of a device."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runtime.formats.precision import ELEMENT_TYPES

CACHE_MULTIPLE = 8
"""A working set of so many times the L2 cache is not served from it."""


@dataclass(frozen=True)
class Target:
    """A figure and the bound that it should keep.

    Attributes:
        name: what was measured.
        value: the figure.
        bound: what it is held against.
        at_least: whether the figure should be `bound` or more; else `bound` or less.
    """

    name: str
    value: float
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the figure keeps the bound; one that is no number does not."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "name": self.name,
            "value": self.value if math.isfinite(self.value) else None,
            "bound": self.bound,
            "at_least": self.at_least,
            "met": self.met,
        }


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
