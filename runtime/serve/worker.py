"""The thread that runs the slots: requests come in, tickets go out, and what is too much is refused."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from commands.errors import reason
from diffusion.errors import InputError
from runtime.serve.image_request import ImageRequest, RequestTables
from runtime.serve.slots import Slots
from runtime.serve.ticket import FINAL, State, Ticket

MAX_FAILURES = 3
"""Network calls that may fail one after the other before the service says that it is broken."""

_SMOOTHING = 0.1  # of the time of a row
_LONGEST_RETRY_S = 3600

_log = logging.getLogger("runtime.serve")


class BusyError(Exception):
    """Too many samples wait; `retry_after_s` says when there may be room."""

    def __init__(self, waiting: int, limit: int, retry_after_s: int) -> None:
        super().__init__(
            f"{waiting} samples wait, and at most {limit} may; try again in {retry_after_s} s, or ask for fewer"
        )
        self.retry_after_s = retry_after_s


class StoppingError(Exception):
    """The service ends, or is broken, and takes no request."""


@dataclass(frozen=True)
class Limits:
    """What a request may ask for, and how much may wait.

    Attributes:
        images: of one request.
        waiting: samples without a slot, of all requests together.
        deadline_s: of a request that names none, and the longest that one may name.
    """

    images: int = 256
    waiting: int = 1024
    deadline_s: float = 600.0


class Observer(Protocol):
    """Is told what happens; what it does must be quick."""

    def stepped(self, rows: int, seconds: float, occupied: int) -> None:
        """A chunk of rows ran, with so many samples in the slots."""

    def ended(self, ticket: Ticket) -> None:
        """A request has ended."""


class Worker:
    """Runs slots in a thread of its own. Everything here may be called by any thread.

    Args:
        slots: nobody else's.
        tables: of the requests.
        limits: on them.
        observer: is told; None for no one.
        clock: the slots' own.

    Attributes:
        tables: of the requests.
        broken: why the service can go on no more; empty while it can.
        cancelled: requests that were not finished because it was halted.
    """

    def __init__(
        self,
        slots: Slots,
        tables: RequestTables,
        limits: Limits,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits, self.broken, self.cancelled = limits, "", 0
        self._slots, self.tables, self._observer, self._clock = slots, tables, observer, clock
        self._changed = threading.Condition()
        self._coming: list[Ticket] = []
        self._leaving: list[Ticket] = []
        self._open: set[Ticket] = set()  # taken and not ended
        self._draining = self._stopping = False
        self._failures = 0
        self._row_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="slots", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return self.is_healthy and not self._draining

    @property
    def is_healthy(self) -> bool:
        """Whether it runs the requests that it took."""
        return self._thread.is_alive() and not self.broken

    @property
    def waiting(self) -> int:
        """Samples that have no slot yet."""
        with self._changed:
            return self._waiting()

    @property
    def occupied(self) -> int:
        """Slots in use."""
        return self._slots.occupied

    @property
    def num_slots(self) -> int:
        """All slots."""
        return self._slots.num_slots

    def submit(
        self, request: ImageRequest, on_change: Callable[[], None] | None = None, is_watched: bool = False
    ) -> Ticket:
        """Take a request.

        Args:
            request: what is asked for.
            on_change, is_watched: see `Ticket`.

        Raises:
            InputError: more than the limits allow, or a chain that the network cannot run.
            BusyError: too much waits.
            StoppingError: nothing is taken any more.
        """
        limits, process = self.limits, self._slots.process
        if request.num > limits.images:
            raise InputError(f"num is {request.num}, this service draws at most {limits.images} images for a request")
        if request.deadline_s is not None and request.deadline_s > limits.deadline_s:
            raise InputError(f"deadline_s is {request.deadline_s:g}, expected at most {limits.deadline_s:g}")
        table, given = self.tables.table(request), request.given(process)
        with self._changed:
            if self.broken:
                raise StoppingError(f"the service is broken: {self.broken}")
            if self._draining or not self._thread.is_alive():
                raise StoppingError("the service is ending and takes no new requests")
            waiting = self._waiting()
            # What fits into the slots need not wait.
            if waiting + request.num - max(0, self.num_slots - self.occupied) > limits.waiting:
                raise BusyError(waiting, limits.waiting, self._retry_after_s())
            x = np.empty((request.num, *process.sample.chw), np.float32)
            ticket = Ticket(request, table, x, self._clock(), on_change, is_watched, given)
            if ticket.deadline_at is None:
                ticket.deadline_at = ticket.taken_at + limits.deadline_s
            self._coming.append(ticket)
            self._open.add(ticket)
            self._changed.notify_all()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for a request any more: its slots are free after the chunk that runs."""
        with self._changed:
            if ticket.state not in FINAL:
                self._leaving.append(ticket)
                self._changed.notify_all()

    def drain(self) -> None:
        """Take no new requests, and finish those that were taken."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def halt(self) -> None:
        """End after the chunk that runs, and cancel what was taken; returns at once."""
        with self._changed:
            self._draining = self._stopping = True
            self._changed.notify_all()

    def stop(self, timeout_s: float = 60.0) -> None:
        """As `halt`, and wait for the end."""
        self.halt()
        self._thread.join(timeout_s)

    def _waiting(self) -> int:
        return self._slots.waiting.samples() + sum(ticket.request.num for ticket in self._coming)

    def _retry_after_s(self) -> int:
        rows = sum(ticket.rows - ticket.rows_done for ticket in self._open)
        seconds = rows / self.num_slots * (self._row_s or 0.0)
        return int(min(_LONGEST_RETRY_S, max(1, math.ceil(seconds / 2))))  # half of it done, there is room

    def _run(self) -> None:
        busy = False
        try:
            while True:
                with self._changed:
                    while not (busy or self._coming or self._leaving or self._stopping):
                        self._changed.wait()
                    if self._stopping:
                        return
                    for ticket in self._coming:
                        self._slots.add(ticket)
                    self._coming.clear()
                    leaving, self._leaving = self._leaving, []
                busy = self._tick(leaving)
        finally:
            self._end()

    def _tick(self, leaving: list[Ticket]) -> bool:
        slots = self._slots
        try:
            for ticket in leaving:
                slots.cancel(ticket)
            before, began = slots.rows_run, time.perf_counter()
            busy = slots.tick()
            rows, seconds = slots.rows_run - before, time.perf_counter() - began
        except Exception as error:
            self._failed(error)
            busy = bool(len(slots.waiting))
        else:
            if rows:
                self._failures = 0
                each = seconds / rows
                self._row_s = each if self._row_s is None else self._row_s + _SMOOTHING * (each - self._row_s)
                if self._observer is not None:
                    self._observer.stepped(rows, seconds, slots.last_occupied)
        self._forget_ended()
        return busy

    def _failed(self, error: Exception) -> None:
        message = reason(error)
        _log.error("a network call failed: %s", message, exc_info=error)
        self._slots.fail(message)
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            self.broken = f"{MAX_FAILURES} network calls failed one after the other, the last with: {message}"
            for ticket in list(self._slots.waiting):
                self._slots.cancel(ticket, State.FAILED, self.broken)

    def _forget_ended(self) -> None:
        ended, self._slots.ended = self._slots.ended, []
        if not ended:
            return
        with self._changed:
            self._open.difference_update(ended)
        if self._observer is not None:
            for ticket in ended:
                self._observer.ended(ticket)

    def _end(self) -> None:
        with self._changed:
            self._draining = True
            for ticket in self._coming:
                self._slots.add(ticket)
            self._coming.clear()
            self.cancelled = sum(ticket.state not in FINAL for ticket in self._open)
        try:
            self._slots.close()
        finally:
            self._forget_ended()
