"""Ctrl-C and SIGTERM during training: finish the step, save, then stop."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any

import torch

from commands.program import say

# Several processes must agree on the step to stop at; asking each other every step would cost more than it is worth.
_AGREE_EVERY = 8
# A terminal and a launcher may both pass on one Ctrl-C; only a later one means impatience.
_SAME_SIGNAL_SECONDS = 1.0


class StopRequest:
    """While open, turns the first SIGINT or SIGTERM into a request; a second one raises KeyboardInterrupt.

    Attributes:
        requested: whether a signal came.
    """

    def __init__(self) -> None:
        self.requested = False
        self._requested_at = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self, accelerator: Any, updates: int) -> bool:
        """Whether to stop after `updates` updates; the same answer in every process."""
        if accelerator.num_processes == 1:
            return self.requested
        if updates % _AGREE_EVERY:
            return False
        asked = torch.tensor([int(self.requested)], device=accelerator.device)
        return bool(accelerator.reduce(asked, reduction="sum").item())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested and now - self._requested_at > _SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._requested_at = True, now
            say("stopping after this step; once more to stop without saving")
