"""Random tables and states, built alike for the compiled step and for its NumPy reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusion.step_table import COLUMNS

# How a prediction of each type is made from float32.
ROUNDINGS = {
    "float32": lambda values: values,
    "float16": lambda values: values.astype(np.float16),
    "bfloat16": lambda values: (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16),
}


def random_buffers(
    shape: tuple[int, ...], prediction_type: str = "float32", wide: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Every buffer that a step can have, for N samples of C channels; all at row 0."""
    rng = np.random.default_rng(seed)
    num = shape[0]
    wide_shape = (num, shape[1] * (2 if wide else 1), *shape[2:])
    state = {name: rng.normal(size=shape).astype(np.float32) for name in ("x", "h1", "h2", "x_start")}
    return state | {
        "prediction": ROUNDINGS[prediction_type](rng.normal(size=wide_shape).astype(np.float32)),
        "next_input": ROUNDINGS[prediction_type](rng.normal(size=shape).astype(np.float32)),
        "t": np.full(num, -7, np.float32),
        "row": np.zeros(num, np.int32),
        "seed": rng.integers(0, 2**64, num, dtype=np.uint64),
        "sample_index": rng.integers(0, 2**64, num, dtype=np.uint64),
        "flag": np.zeros(num, np.int32),
    }


def random_table(num_rows: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients float32 [R, 13] and timesteps int32 [R]; the last row adds no noise."""
    rng = np.random.default_rng(seed + 1000)
    coefficients = rng.normal(size=(num_rows, len(COLUMNS))).astype(np.float32)
    coefficients[-1, COLUMNS.index("s")] = 0.0
    timesteps = np.sort(rng.choice(2**20 - 1, num_rows, replace=False))[::-1]
    return coefficients, timesteps.astype(np.int32)


def assert_same_bits(actual: dict[str, Any], expected: dict[str, Any], context: object = "") -> None:
    """Equal bit for bit in every buffer; a NaN equals any NaN."""
    for name, buffer in expected.items():
        same = actual[name].view(np.uint8) == buffer.view(np.uint8)
        if not same.all():
            as_float = buffer.dtype.kind == "f"
            np.testing.assert_array_equal(actual[name], buffer, err_msg=f"{name} {context}")
            assert as_float, f"{name} {context}"
            np.testing.assert_array_equal(np.signbit(actual[name]), np.signbit(buffer), err_msg=f"{name} {context}")
