"""An ε-network on the host that a device can have too, with the same bits."""

from __future__ import annotations

import numpy as np

from diffusion.process import Process
from runtime.engines.interface import Engine

TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int64": np.int64}


def rounded(x: np.ndarray, io_type: str) -> np.ndarray:
    """float32 in another type, as the step rounds; bfloat16 as uint16."""
    if io_type != "bfloat16":
        return x.astype(TYPES[io_type])
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def as_float32(x: np.ndarray, io_type: str) -> np.ndarray:
    """The other way."""
    return (x.astype(np.uint32) << 16).view(np.float32) if io_type == "bfloat16" else x.astype(np.float32)


def network(x: np.ndarray, t: np.ndarray, channels: int, *conditions: np.ndarray) -> np.ndarray:
    """Something of x, t and, if given, a label and a scale, float32 [N, channels, H, W]; no sample sees another."""
    t = t.astype(np.float32).reshape(-1, 1, 1, 1)
    prediction = np.float32(0.8) * x - np.float32(0.3) * np.roll(x, 1, axis=3) + np.float32(1e-4) * t
    if conditions:
        label, scale = (each.astype(np.float32).reshape(-1, 1, 1, 1) for each in conditions)
        prediction = prediction + scale * (np.float32(0.01) * label)
    return (
        np.concatenate([prediction, np.clip(prediction, -1, 1)], axis=1) if channels == 2 * x.shape[1] else prediction
    )


class HostNetwork(Engine):
    """An `Engine`.

    Attributes:
        broken: sample slot and timestep at which the prediction becomes NaN; None for nowhere.
    """

    name, sha256, precision = "host", "0" * 64, "fp32"

    def __init__(self, process: Process, break_at: tuple[int, int] | None = None) -> None:
        self.process = process
        self.broken = break_at

    def predict(self, x: np.ndarray, t: np.ndarray, *conditions: np.ndarray) -> np.ndarray:
        prediction = network(x, t, self.process.prediction_channels, *conditions)
        if self.broken is not None:
            slot, timestep = self.broken
            if slot < len(x) and t[slot] == timestep:
                prediction[slot, 0, 1, 1] = np.nan
        return prediction

    def _bind(self, x, t, prediction, *conditions):
        def call() -> None:
            prediction[:] = self.predict(x, t, *conditions)

        return call
