"""Conditions that engines are verified with: others for each sample, the null class and both ends of guidance too.

A scale g multiplies the rounding of a low-precision network by √(g² + (1 − g)²), which says nothing of the engine:
there the scales stay where that is about 1. Guidance is affine in g, so these decide it as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffusion.conditions import GUIDANCE, Condition

# Of a length that has no divisor in common with the number of labels below, so that every label meets every scale.
_SCALES = (2.0, 0.0, 1.0, 3.5, 0.5, 7.5, 1.5)
_LOW_PRECISION_SCALES = (0.5, 0.0, 1.0, 1.25, 0.25, 1.125, 0.75)
_SEED = 0


def gate_conditions(
    conditions: Sequence[Condition], num: int, first: int = 0, precision: str = "fp32"
) -> tuple[np.ndarray, ...]:
    """One array [num, …] for each condition, in their order.

    Args:
        conditions: of the process.
        num: samples.
        first: number of the first one; each number has values of its own, whatever it is batched with.
        precision: of the engine.
    """
    scales = _SCALES if precision == "fp32" else _LOW_PRECISION_SCALES
    numbers = range(first, first + num)
    return tuple(np.stack([_value(condition, number, scales) for number in numbers]) for condition in conditions)


def _value(condition: Condition, number: int, scales: Sequence[float]) -> np.ndarray:
    if condition.is_label:
        assert condition.classes is not None
        last = condition.classes - 1
        null = last if condition.null is None else condition.null
        labels = list(dict.fromkeys((0, null, last, (last + 1) // 2)))
        return np.array(labels[number % len(labels)], dtype=np.int64)
    if condition.name == GUIDANCE:
        return np.array(scales[number % len(scales)], dtype=np.float32)
    rng = np.random.default_rng((_SEED, number))
    return rng.uniform(-1.0, 1.0, condition.shape).astype(np.float32)
