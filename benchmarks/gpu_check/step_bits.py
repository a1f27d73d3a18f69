"""The step on the GPU has the bits of the C++ step: every kind of table, type and shape."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.gpu_check.context import StageContext
from benchmarks.gpu_check.device_arrays import DeviceArrays, differing_elements
from diffusion.step_table import COLUMNS
from runtime.formats.precision import BFLOAT16, ELEMENT_TYPES, FLOAT16, FLOAT32

NUM_ROWS = 4
# Whole eights in one block and in several, and neither; more samples than multiprocessors.
SHAPES = ((3, 3, 8, 8), (2, 3, 64, 64), (4, 1, 5, 7), (200, 1, 4, 4))
CHANGED = ("x", "h1", "h2", "x_start", "next_input", "t", "row", "flag")
_TYPES = (FLOAT32.name, FLOAT16.name, BFLOAT16.name)


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


def every_kind() -> Iterator[StepKind]:
    """All of them."""
    tables = itertools.product((0, 1, 2), (False, True), (False, True), (1.0, np.inf))
    for histories, learned, h2_is_x_start, clip in tables:
        if h2_is_x_start and histories < 2:
            continue
        for prediction_type, t_is_int64 in itertools.product(_TYPES, (False, True)):
            yield StepKind(histories, learned, h2_is_x_start, clip, learned, prediction_type, t_is_int64)
    for prediction_type in _TYPES:
        yield StepKind(0, False, False, 1.0, True, prediction_type, False)  # 2C channels of which C are unread
        yield StepKind(2, True, True, 1.0, True, prediction_type, True, aligned=False)


def run(context: StageContext, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> None:
    """The stage.

    Args:
        context: of the stage.
        shapes: [N, C, H, W] of the batches.
    """
    compared = 0
    for kind in every_kind():
        for number, shape in enumerate(shapes):
            problems = differences(context, kind, shape, seed=number)
            compared += 1
            if problems:
                context.check(f"{kind} {shape}", False, "; ".join(problems))
    context.record("steps_compared", compared * NUM_ROWS)
    name = f"{compared} kinds and shapes, {NUM_ROWS} rows each, with noise and without"
    context.check(name, not context.failed_checks, f"{len(context.failed_checks)} differ")
    problems = broken_sample_differences(context)
    context.check("predictions that are not finite are flagged, idle samples left alone", not problems, str(problems))


def differences(context: StageContext, kind: StepKind, shape: tuple[int, ...], seed: int = 0) -> list[str]:
    """Run every row on both sides from the same state; what differs afterwards, and at which row."""
    return _differences(context, kind, random_state(kind, shape, seed), random_table(seed))


def broken_sample_differences(context: StageContext) -> list[str]:
    """NaN and infinity in predictions, samples at different rows, and samples that are idle."""
    problems = []
    for prediction_type in _TYPES:
        kind = StepKind(1, True, False, 1.0, True, prediction_type, False)
        state = random_state(kind, (7, 2, 8, 8), seed=11)
        not_a_number = np.uint16(0x7FC0) if prediction_type == "bfloat16" else np.nan
        infinite = np.uint16(0x7F80) if prediction_type == "bfloat16" else np.inf
        state["prediction"][1, 3, 2, 5] = not_a_number  # of the second C channels
        state["prediction"][4, 0, 0, 0] = infinite
        state["row"][:] = [0, 0, -1, NUM_ROWS, 1, NUM_ROWS - 1, 2]
        problems += _differences(context, kind, state, random_table(11))
    return problems


def _differences(
    context: StageContext, kind: StepKind, state: dict[str, np.ndarray], table: tuple[np.ndarray, np.ndarray]
) -> list[str]:
    coefficients, timesteps = table
    shape = state["x"].shape
    options: dict[str, Any] = {
        "histories": kind.histories,
        "learned": kind.learned,
        "h2_is_x_start": kind.h2_is_x_start,
        "clip": kind.clip,
    }
    arrays = {**state, "coefficients": coefficients, "timesteps": timesteps, "arrivals": np.zeros(shape[0], np.uint32)}
    offset = 0 if kind.aligned else 8  # enough for the widest element, and no multiple of 16
    with DeviceArrays(context.memory, {name: array.copy() for name, array in arrays.items()}, offset) as device:
        host = context.kernels.HostStep(coefficients, timesteps, threads=1, **options, **state)
        step = context.kernels.CudaStep(
            **device.addresses,
            **options,
            num_rows=NUM_ROWS,
            num_samples=shape[0],
            num_elements=int(np.prod(shape[1:])),
            prediction_elements=int(np.prod(state["prediction"].shape[1:])),
            prediction_type=kind.prediction_type,
            t_is_int64=kind.t_is_int64,
        )
        problems = []
        for row in range(NUM_ROWS):
            host.run()
            step.launch(device.stream)
            counts = {name: differing_elements(device.read(name), state[name]) for name in CHANGED if name in state}
            counts["arrivals"] = int(np.count_nonzero(device.read("arrivals")))
            problems += [f"{count} of {name} after row {row}" for name, count in counts.items() if count]
    return problems


def random_table(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients float32 [R, 13] and timesteps int32 [R]; the last row adds no noise."""
    rng = np.random.default_rng(seed + 1000)
    coefficients = rng.normal(size=(NUM_ROWS, len(COLUMNS))).astype(np.float32)
    coefficients[-1, COLUMNS.index("s")] = 0.0
    timesteps = np.sort(rng.choice(2**20 - 1, NUM_ROWS, replace=False))[::-1].astype(np.int32)
    return coefficients, timesteps


def random_state(kind: StepKind, shape: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    """Every buffer of N samples at row 0, those of histories only where the table keeps them."""
    rng = np.random.default_rng(seed)
    num = shape[0]
    wide_shape = (num, shape[1] * (2 if kind.wide else 1), *shape[2:])

    def values(shape: tuple[int, ...]) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def predicted(shape: tuple[int, ...]) -> np.ndarray:
        exact = values(shape)
        # bfloat16 is the upper half of float32.
        is_bfloat16 = kind.prediction_type == "bfloat16"
        return (
            (exact.view(np.uint32) >> 16).astype(np.uint16)
            if is_bfloat16
            else exact.astype(ELEMENT_TYPES[kind.prediction_type].host)
        )

    names = ("x", "h1", "h2")[: 1 + kind.histories]
    return {name: values(shape) for name in (*names, "x_start")} | {
        "prediction": predicted(wide_shape),
        "next_input": predicted(shape),
        "t": np.full(num, 7, np.int64 if kind.t_is_int64 else np.float32),
        "row": np.zeros(num, np.int32),
        "seed": rng.integers(0, 2**64, num, dtype=np.uint64),
        "sample_index": rng.integers(0, 2**64, num, dtype=np.uint64),
        "flag": np.zeros(num, np.int32),
    }
