"""How far the predictions of an engine on the GPU are from those of PyTorch in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from runtime.device.interface import DeviceEngine

TIMESTEPS = (0, 30, 250, 600, 999)
TOLERANCES = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}
"""float32: the order of sums, and cuDNN's transforms for 3 × 3 kernels. fp16 and bf16 keep 11 and 8 bits of each
factor, and 60 layers add to that."""


def largest_error(
    engine: DeviceEngine, reference: Callable[[np.ndarray, np.ndarray], np.ndarray], batch_size: int
) -> float:
    """‖out − reference‖ / ‖reference‖ of a call from the host; the largest over timesteps and samples.

    The samples of a batch are all different, and so are their timesteps; what is not written is NaN.

    Returns:
        Infinity where anything is not finite.
    """
    shape = (batch_size, *engine.process.sample.chw)
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    prediction, t = np.full(shape, np.nan, np.float32), np.zeros(batch_size, np.float32)
    call = engine.bind(x, t, prediction)
    errors = []
    for first in range(len(TIMESTEPS)):
        t[:] = np.resize(np.roll(TIMESTEPS, -first), batch_size)
        prediction[:] = np.nan
        call()
        for found, expected in zip(prediction, reference(x, t), strict=True):
            errors.append(float(np.linalg.norm(found - expected) / np.linalg.norm(expected)))
    return max(error if np.isfinite(error) else float("inf") for error in errors)
