"""What a fitted table is reported to reach: on noise that the fit has not seen, and in lower precision."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from diffusion.step_table import StepTable
from train.fitting.energy import EnergyDistance
from train.fitting.network import FittedNetwork
from train.fitting.start import FIRST_INDEX
from train.fitting.teacher import TeacherDistance

_NUM_HELD_OUT, _NUM_IN_PRECISION = 1024, 64
_FIRST = FIRST_INDEX << 1  # neither the fit nor the choice of its start has drawn these
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}

Figures = dict[str, dict[str, float | None]]
"""By measure, of the table that a fit began with and of the fitted one: `start` and `fitted`. None: not finite."""


def held_out_figures(
    network: FittedNetwork, objective: EnergyDistance | TeacherDistance, start: StepTable, fitted: StepTable
) -> Figures:
    """The objective's measures on held-out noise, of both tables the same."""
    indices = range(_FIRST, _FIRST + _NUM_HELD_OUT)
    with torch.no_grad():
        return _by_measure([objective.figures(network.sample(table, indices), indices) for table in (start, fitted)])


def precision_figures(network: FittedNetwork, start: StepTable, fitted: StepTable) -> Figures:
    """By precision, the root mean square by which x_0 differs from float32's; data spans [−1, 1].

    None where the network overflows, as many do in fp16.

    `int64 timesteps` is what an engine makes of the table that takes t as a whole number.
    """
    indices = range(_FIRST, _FIRST + _NUM_IN_PRECISION)
    found = []
    for table in (start, fitted):
        expected = network.sample(table, indices)
        of_table = {}
        for name, dtype in _PRECISIONS.items():
            of_table[name] = _difference(network.in_precision(dtype), table, indices, expected)
        of_table["int64 timesteps"] = _difference(network.with_whole_timesteps(), table, indices, expected)
        found.append(of_table)
    return _by_measure(found)


def _difference(network: FittedNetwork, table: StepTable, indices: Sequence[int], expected: torch.Tensor) -> float:
    return float((network.sample(table, indices) - expected).square().mean().sqrt())


def _by_measure(of_tables: Sequence[dict[str, float]]) -> Figures:
    start, fitted = of_tables
    return {name: {"start": _if_finite(start[name]), "fitted": _if_finite(fitted[name])} for name in start}


def _if_finite(figure: float) -> float | None:
    return figure if math.isfinite(figure) else None
