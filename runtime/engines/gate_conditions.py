"""Conditions that engines are verified with: of every sample others, the null class and both ends of guidance included."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffusion.conditions import GUIDANCE, Condition

# Of lengths without a common divisor, so that every label meets every scale.
_GUIDANCE = (2.0, 0.0, 1.0, 3.5, 0.5, 7.5, 1.5)
_SEED = 0


def gate_conditions(conditions: Sequence[Condition], num: int, first: int = 0) -> tuple[np.ndarray, ...]:
    """One array [num, …] for each condition, in their order.

    Args:
        conditions: of the process.
        num: samples.
        first: number of the first one; each number has values of its own, whatever it is batched with.
    """
    numbers = range(first, first + num)
    return tuple(np.stack([_value(condition, number) for number in numbers]) for condition in conditions)


def _value(condition: Condition, number: int) -> np.ndarray:
    if condition.is_label:
        last = condition.num_labels - 1
        labels = list(dict.fromkeys((0, last, last // 2, last if condition.null is None else condition.null, 1 % (last + 1))))
        return np.array(labels[number % len(labels)], dtype=np.int64)
    if condition.name == GUIDANCE:
        return np.array(_GUIDANCE[number % len(_GUIDANCE)], dtype=np.float32)
    rng = np.random.default_rng((_SEED, number))
    return rng.uniform(-1.0, 1.0, condition.shape).astype(np.float32)
