"""Means of loss and gradient norm, and images per second, between two lines of the metrics."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch


class Meter:
    """Adds up on the device, without waiting for it, and reads once per line.

    Args:
        accelerator: whose processes the means go over.
        state: of an earlier meter, to continue in the middle of a line.
    """

    def __init__(self, accelerator: Any, state: dict[str, float] | None = None) -> None:
        self._accelerator = accelerator
        self._sums = torch.zeros(2, device=accelerator.device)  # loss, gradient norm
        self._updates = 0
        if state is not None:
            self._sums += torch.tensor([state["loss"], state["grad_norm"]], device=accelerator.device)
            self._updates = int(state["updates"])
        self._timed_updates, self._seconds = 0, 0.0
        self._since = time.perf_counter()

    def add(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> None:
        """Take in one update."""
        self._sums += torch.stack([loss, grad_norm])
        self._updates += 1
        self._timed_updates += 1

    def read(self, batch_size: int) -> dict[str, float]:
        """`loss`, `grad_norm` and `images_per_second` since the last reading. Every process must call this.

        Args:
            batch_size: images per update, over all processes.
        """
        loss, grad_norm = self._accelerator.reduce(self._sums, reduction="mean").tolist()
        self._seconds += time.perf_counter() - self._since
        line = {
            "loss": loss / self._updates,
            "grad_norm": grad_norm / self._updates,
            "images_per_second": self._timed_updates * batch_size / self._seconds,
        }
        self._sums, self._updates = torch.zeros_like(self._sums), 0
        self._timed_updates, self._seconds, self._since = 0, 0.0, time.perf_counter()
        return line

    def state(self) -> dict[str, float]:
        """What has been added since the last reading."""
        loss, grad_norm = self._sums.tolist()
        return {"loss": loss, "grad_norm": grad_norm, "updates": self._updates}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent here is not training."""
        self._seconds += time.perf_counter() - self._since
        try:
            yield
        finally:
            self._since = time.perf_counter()
