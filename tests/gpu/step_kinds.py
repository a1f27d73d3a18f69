"""Every kind of step that the compiled code distinguishes, on the device and by the C++ step from the same state."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.device.device_arrays import DeviceArrays, differing_elements
from benchmarks.device.gpu_machine import GpuMachine
from tests.kernels.random_steps import random_buffers, random_table

NUM_ROWS = 4
CHANGED = ("x", "h1", "h2", "x_start", "next_input", "t", "row", "flag")
PREDICTION_TYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class StepKind:
    """What the compiled code distinguishes.

    Attributes:
        histories, learned, h2_is_x_start, clip: of the table.
        wide: whether the prediction has 2C channels.
        prediction_type: of the prediction, and of the network's next input.
        t_is_int64: the type of the timesteps.
        aligned: whether buffers begin at a multiple of 16 bytes.
    """

    histories: int
    learned: bool
    h2_is_x_start: bool
    clip: float
    wide: bool
    prediction_type: str
    t_is_int64: bool
    aligned: bool = True

    @property
    def table_options(self) -> dict[str, Any]:
        """As both steps take them."""
        return {name: getattr(self, name) for name in ("histories", "learned", "h2_is_x_start", "clip")}


def every_kind() -> Iterator[StepKind]:
    """All of them."""
    tables = itertools.product((0, 1, 2), (False, True), (False, True), (1.0, np.inf))
    for histories, learned, h2_is_x_start, clip in tables:
        if h2_is_x_start and histories < 2:
            continue
        for prediction_type, t_is_int64 in itertools.product(PREDICTION_TYPES, (False, True)):
            yield StepKind(histories, learned, h2_is_x_start, clip, learned, prediction_type, t_is_int64)
    for prediction_type in PREDICTION_TYPES:
        yield StepKind(0, False, False, 1.0, True, prediction_type, False)  # 2C channels of which C are unread
        yield StepKind(2, True, True, 1.0, True, prediction_type, True, aligned=False)


def one_of_each_kernel() -> list[StepKind]:
    """Every compiled kernel once or more: histories, a learned variance, the type; and addresses that are odd."""
    seen: dict[tuple[int, bool, str, bool], StepKind] = {}
    for kind in every_kind():
        seen.setdefault((kind.histories, kind.learned, kind.prediction_type, kind.aligned), kind)
    return list(seen.values())


def random_state(kind: StepKind, shape: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """Every buffer of N samples at row 0, those of histories only where the table keeps them."""
    state = random_buffers(shape, kind.prediction_type, kind.wide, seed)
    state["t"] = np.full(shape[0], 7, np.int64 if kind.t_is_int64 else np.float32)
    return {name: array for name, array in state.items() if name not in ("h1", "h2")[kind.histories :]}


def differences(
    machine: GpuMachine,
    kind: StepKind,
    state: dict[str, np.ndarray],
    table: tuple[np.ndarray, np.ndarray] | None = None,
) -> list[str]:
    """Run every row on both sides from the same state; what differs afterwards, and at which row.

    Args:
        machine: whose kernels they are.
        kind: of the step.
        state: of `random_state`; in the end it holds what the C++ step made of it.
        table: coefficients and timesteps; None for random ones.
    """
    coefficients, timesteps = random_table(NUM_ROWS, len(state["x"])) if table is None else table
    shape = state["x"].shape
    arrays = {**state, "coefficients": coefficients, "timesteps": timesteps, "arrivals": np.zeros(shape[0], np.uint32)}
    offset = 0 if kind.aligned else 8  # enough for the widest element, and no multiple of 16
    with DeviceArrays(machine.memory, {name: array.copy() for name, array in arrays.items()}, offset) as device:
        host = machine.kernels.HostStep(coefficients, timesteps, threads=1, **kind.table_options, **state)
        step = machine.kernels.CudaStep(
            **device.addresses,
            **kind.table_options,
            num_rows=len(timesteps),
            num_samples=shape[0],
            num_elements=int(np.prod(shape[1:])),
            prediction_elements=int(np.prod(state["prediction"].shape[1:])),
            prediction_type=kind.prediction_type,
            t_is_int64=kind.t_is_int64,
        )
        problems = []
        for row in range(len(timesteps)):
            host.run()
            step.launch(device.stream)
            counts = {name: differing_elements(device.read(name), state[name]) for name in CHANGED if name in state}
            counts["arrivals"] = int(np.count_nonzero(device.read("arrivals")))
            problems += [f"{count} of {name} after row {row}" for name, count in counts.items() if count]
    return problems
