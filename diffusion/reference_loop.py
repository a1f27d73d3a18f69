"""The plain loop: a table run in NumPy at any precision. The oracle that every chain is checked against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from diffusion.normal import draw_number, normal_batch
from diffusion.step_table import COLUMNS, StepTable

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(x [N, C, H, W], t float [N]) → prediction [N, C or 2C, H, W], of a network whose conditions are given."""


class State(NamedTuple):
    """What a chain holds after a step."""

    x: np.ndarray
    x_start: np.ndarray


def initial_noise(shape: tuple[int, int, int, int], seed: int, start: int) -> np.ndarray:
    """x_T of samples start..start+N−1, float32 [N, C, H, W]."""
    num, *chw = shape
    indices = range(start, start + num)
    return normal_batch(tuple(chw), [seed] * num, list(indices), [draw_number(None)] * num)


def reference_states(
    table: StepTable, predict: Predict, x: np.ndarray, seed: int = 0, start: int = 0, dtype: type = np.float64
) -> Iterator[State]:
    """Run a table and yield the state after every row.

    The arithmetic is written out as in the table's definition, in `dtype`, with the coefficients as they
    were computed, in float64; the noise is that of `diffusion.normal`, whose bits are float32.

    Args:
        table: the rows.
        predict: the network.
        x: [N, C, H, W], the state that the first row begins with.
        seed: of the noise.
        start: sample index of x[0].
        dtype: of the loop's arithmetic.
    """
    x = x.astype(dtype)
    num, channels = x.shape[:2]
    h1, h2 = np.zeros_like(x), np.zeros_like(x)
    for timestep, coefficients in zip(table.timesteps, table.coefficients, strict=True):
        row = {name: dtype(value) for name, value in zip(COLUMNS, coefficients, strict=True)}
        prediction: np.ndarray = predict(x, np.full(num, timestep, dtype=dtype)).astype(dtype)
        p, w = prediction[:, :channels], prediction[:, channels:]
        x_start = np.clip(row["u"] * x + row["v"] * p, -table.clip, table.clip)
        x_prev = row["a"] * x + row["q"] * p + row["b"] * x_start + row["c1"] * h1 + row["c2"] * h2
        if row["s"] != 0:
            draw = draw_number(int(timestep))
            z = normal_batch(x.shape[1:], [seed] * num, list(range(start, start + num)), [draw] * num)
            noise_std = row["s"] * np.exp(row["k"] * w) if table.learned else row["s"]
            x_prev = x_prev + noise_std * z
        h1_next = row["d"] * x + row["f"] * x_start + row["g1"] * h1 + row["g2"] * h2
        h1, h2 = h1_next, (x_start if table.h2_is_x_start else h1)
        x = x_prev
        yield State(x, x_start)


def reference_loop(
    table: StepTable, predict: Predict, x: np.ndarray, seed: int = 0, start: int = 0, dtype: type = np.float64
) -> np.ndarray:
    """The last state of `reference_states`: x_0, [N, C, H, W]."""
    for state in reference_states(table, predict, x, seed, start, dtype):
        x = state.x
    return x
