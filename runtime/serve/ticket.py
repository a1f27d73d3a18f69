"""One request on its way through the slots: what is done of it, and what became of it."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffusion.step_table import StepTable
from runtime.conditions import GivenConditions
from runtime.formats.run_manifest import NonFiniteSample
from runtime.serve.image_request import ImageRequest


class State(enum.Enum):
    """Where a request stands; the last four are final."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FAILED = "failed"


FINAL = frozenset({State.DONE, State.CANCELLED, State.EXPIRED, State.FAILED})


@dataclass(frozen=True)
class Preview:
    """What the network predicts the samples in the slots to become.

    Attributes:
        places: of the samples in the request, 0..num−1.
        rows_done: of each.
        x_start: float32 [n, C, H, W].
    """

    places: list[int]
    rows_done: list[int]
    x_start: np.ndarray


class Ticket:
    """A request that was taken. The thread that runs the slots writes it, others read it.

    Args:
        request: what was asked for.
        table: its rows.
        x: float32 [num, C, H, W], to be filled.
        taken_at: seconds of the clock that the deadline is measured with.
        on_change: called, by the thread that runs the slots, at the end; must return soon and raise nothing.
        is_watched: whether `on_change` is called after every chunk of rows, too.
        given: what the network is conditioned on; None for nothing.

    Attributes:
        number: in the order of arrival, given by the slots.
        share: of the slots that were given away when it came, see `runtime.serve.fair_share`.
        granted: samples that got a slot.
        finished: samples that are through.
        rows_done: of all samples together, num · rows of the table at the end.
        non_finite: samples that broke; `x` holds nothing of them.
        preview: the last one.
        state, error: what became of it; `error` says why it failed.
        started_at, first_preview_at, ended_at: seconds of the clock; None before.
    """

    def __init__(
        self,
        request: ImageRequest,
        table: StepTable,
        x: np.ndarray,
        taken_at: float,
        on_change: Callable[[], None] | None = None,
        is_watched: bool = False,
        given: GivenConditions | None = None,
    ) -> None:
        self.request, self.table, self.x = request, table, x
        self.given = given or GivenConditions()
        self.taken_at, self.is_watched = taken_at, is_watched
        self.deadline_at = None if request.deadline_s is None else taken_at + request.deadline_s
        self.number, self.share = -1, 0
        self.granted = self.finished = self.rows_done = 0
        self.non_finite: list[NonFiniteSample] = []
        self.preview: Preview | None = None
        self.state, self.error = State.WAITING, ""
        self.started_at: float | None = None
        self.first_preview_at: float | None = None
        self.ended_at: float | None = None
        self._on_change = on_change
        self._ended = threading.Event()

    @property
    def rows(self) -> int:
        """That `rows_done` reaches."""
        return self.request.num * len(self.table)

    @property
    def problem(self) -> str:
        """Why a request that has ended has no images; empty where it has."""
        if self.state is not State.DONE:
            return self.error or "the service was stopped before the images were done"
        if self.non_finite:
            shown = "; ".join(str(sample) for sample in self.non_finite[:3])
            return f"{len(self.non_finite)} of {self.request.num} samples are not finite: {shown}"
        return ""

    def moved(self) -> None:
        """Rows were done: tell whoever watches."""
        if self.is_watched and self._on_change is not None:
            self._on_change()

    def end(self, state: State, error: str, now: float) -> None:
        """It has come to one of the final states: tell whoever waits."""
        self.state, self.error, self.ended_at = state, error, now
        self._ended.set()
        if self._on_change is not None:
            self._on_change()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the state is final; whether it is."""
        return self._ended.wait(timeout_s)
