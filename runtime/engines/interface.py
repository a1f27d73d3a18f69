"""What a backend must offer to be run by the host chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from diffusion.process import Process


class Engine(Protocol):
    """An ε-network ready to run: the process it belongs to, and calls bound to buffers."""

    name: str
    """For messages and reports, such as `ONNX Runtime 1.20 (CPU)`."""

    process: Process
    """What the network was trained to do."""

    sha256: str
    """Of every byte that the network is made of, in however many files: a run's identity."""

    precision: str
    """Of the network's arithmetic: `fp32`, `fp16`, `bf16` or `int8`. Tables are checked against it."""

    def batch_range(self) -> tuple[int, int | None]:
        """The smallest and the largest batch that it takes; None where only memory limits it."""

    def bind(self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray) -> Callable[[], None]:
        """A call that reads `x` and `t` and writes `prediction`, in place and every time the same buffers.

        Args:
            x: float32 [N, C, H, W], C-contiguous.
            t: float32 [N], the network's own conditioning, integers 0..T−1.
            prediction: float32 [N, C or 2C, H, W], C-contiguous, written.

        The call that is returned keeps the buffers alive. One engine may be bound several times.

        Raises:
            InputError: the network does not take this batch size.
        """
