"""A batch of samples as a sampler gives it to its chains, on the host or on a device, and gets it back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from runtime.formats.run_manifest import NonFiniteSample
from runtime.trajectory import Trajectory


@dataclass
class ChainBatch:
    """One batch for `HostChains` or `DeviceChains`, and then its result.

    Attributes:
        first: place in the run of its first sample.
        seeds, sample_indices: of its samples.
        x_init: states to begin from; None for noise.
        trajectory: to be shown the states; None for no one.
        rows_done: how many rows are through, on a GPU.
        rows_running: how many are on its stream.
        x, finite, non_finite: the result, once the last row is through.
    """

    first: int
    seeds: list[int]
    sample_indices: list[int]
    x_init: np.ndarray | None
    trajectory: Trajectory | None
    rows_done: int = 0
    rows_running: int = 0
    x: np.ndarray | None = None
    finite: np.ndarray | None = None
    non_finite: list[NonFiniteSample] = field(default_factory=list)
