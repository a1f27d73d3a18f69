"""The slots of one chain: samples of several requests in one batch, each at a row of its own table.

A **slot** is a place in the chain's batch. A request of n samples takes n slots as they become free, between any two
chunks of rows; a chunk ends where the first sample ends. The batch's shape is always the same, so the images of a
request do not depend on what else is in it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffusion.errors import InputError
from diffusion.process import Process
from runtime.chain.device import DeviceChain
from runtime.chain.host import HostChain
from runtime.chain.interface import Chain
from runtime.chain.plan import check_host_batch
from runtime.device.interface import DeviceEngine
from runtime.engines.interface import Engine
from runtime.formats.run_manifest import NonFiniteSample
from runtime.serve.fair_share import FairShare
from runtime.serve.table_rows import RowKind, TableRows, empty_table, rows_for
from runtime.serve.ticket import FINAL, Preview, State, Ticket

ROWS_WHILE_OPEN = 8
"""Rows of a chunk, at most, while a request could enter or somebody watches."""


@dataclass
class _Occupied:
    """A sample in a slot."""

    ticket: Ticket
    place: int
    first_row: int
    rows_left: int

    @property
    def rows_done(self) -> int:
        return len(self.ticket.table) - self.rows_left


class Slots:
    """N slots, run by one thread, which calls everything here but what is said otherwise.

    Args:
        engine: the network.
        num_slots: N, the batch of every network call.
        threads: of the step on the CPU; 0 for as many as this process may use.
        clock: seconds that never go back.
        make_chain: in place of the chain that the engine asks for.

    Attributes:
        occupied: of the slots.
        rows_run: network calls so far.
        last_occupied: samples that took part in the last of them.

    Raises:
        InputError: a batch that the engine does not take or that does not fit into memory, or an engine that takes one
            timestep for the whole batch.
    """

    def __init__(
        self,
        engine: Engine,
        num_slots: int,
        threads: int = 0,
        clock: Callable[[], float] = time.monotonic,
        make_chain: Callable[..., Chain] | None = None,
    ) -> None:
        if engine.shares_timestep:
            raise InputError(
                f"{engine.path or engine.name}: takes one timestep for the whole batch, expected t of shape [N], as "
                "samples in the slots stand at different ones; export it again with `python -m export.to_onnx`"
            )
        engine.check_batch(num_slots)
        self.num_slots = num_slots
        self._engine, self._threads, self._clock = engine, threads, clock
        self._make_chain = make_chain or self._chain_of_engine
        self._num_rows = rows_for(engine.process, num_slots)
        self._chain: Chain | None = None
        self._rows: TableRows | None = None
        self._kind: RowKind | None = None
        self._slots: list[_Occupied | None] = [None] * num_slots
        self._order = FairShare()
        self.rows_run = self.last_occupied = 0
        kind = RowKind(np.inf if self.process.clip_sample is None else self.process.clip_sample, h2_is_x_start=False)
        if not isinstance(engine, DeviceEngine):
            check_host_batch(engine, empty_table(engine.process, kind, 1), num_slots)
        self._open(kind)

    @property
    def process(self) -> Process:
        """What the network was trained to do."""
        return self._engine.process

    @property
    def occupied(self) -> int:
        """Slots with a sample in them."""
        return sum(slot is not None for slot in self._slots)

    @property
    def waiting(self) -> FairShare:
        """The requests with samples that have no slot yet."""
        return self._order

    def add(self, ticket: Ticket) -> None:
        """Let a request wait for its slots."""
        self._order.add(ticket)

    def cancel(self, ticket: Ticket, state: State = State.CANCELLED, error: str = "") -> None:
        """End a request: it gets no more slots, and those that it has are free. Does nothing to one that has ended."""
        if ticket.state in FINAL:
            return
        self._order.remove(ticket)
        slots = [number for number, slot in enumerate(self._slots) if slot is not None and slot.ticket is ticket]
        self._free(slots)
        self._end(ticket, state, error)

    def tick(self) -> bool:
        """End what is too late, fill free slots, run one chunk of rows; whether anything is left to do.

        Raises:
            RuntimeError: the engine or CUDA failed; `fail` gives the chain up.
        """
        self._expire()
        self._admit()
        running = [slot for slot in self._slots if slot is not None]
        if running:
            self._run(running)
        return bool(self.occupied or len(self._order))

    def fail(self, error: str) -> list[Ticket]:
        """After a failure: end the requests that have a slot, and begin with a new chain. Returns those requests."""
        failed = list({id(slot.ticket): slot.ticket for slot in self._slots if slot is not None}.values())
        self._slots = [None] * self.num_slots
        with contextlib.suppress(RuntimeError):  # of a device that has failed for good
            self._close()
        self._chain = self._rows = self._kind = None
        for ticket in failed:
            self._order.remove(ticket)
            self._end(ticket, State.FAILED, error)
        return failed

    def close(self) -> None:
        """Give the chain back. Requests that have not ended are cancelled."""
        tickets = {id(slot.ticket): slot.ticket for slot in self._slots if slot is not None}
        while (ticket := self._order.next()) is not None:
            tickets[id(ticket)] = ticket
            self._order.remove(ticket)
        for ticket in tickets.values():
            self.cancel(ticket)
        self._close()

    def _chain_of_engine(self, *arguments: object) -> Chain:
        engine, table, num_slots, with_x_start = arguments
        if isinstance(engine, DeviceEngine):
            return DeviceChain(engine, table, num_slots, with_x_start)  # type: ignore[arg-type]
        return HostChain(engine, table, num_slots, with_x_start, self._threads)  # type: ignore[arg-type]

    def _open(self, kind: RowKind) -> None:
        self._close()
        self._chain = self._make_chain(
            self._engine, empty_table(self.process, kind, self._num_rows), self.num_slots, True
        )
        self._rows, self._kind = TableRows(self._chain, self.process, kind, self._num_rows), kind

    def _close(self) -> None:
        if self._chain is not None:
            self._chain.close()
        self._chain = self._rows = self._kind = None

    def _expire(self) -> None:
        now = self._clock()
        tickets = {id(slot.ticket): slot.ticket for slot in self._slots if slot is not None}
        tickets |= {id(ticket): ticket for ticket in self._order}
        for ticket in tickets.values():
            if ticket.deadline_at is not None and now >= ticket.deadline_at:
                late_s = ticket.deadline_at - ticket.taken_at
                self.cancel(ticket, State.EXPIRED, f"its deadline of {late_s:g} s has passed")

    def _admit(self) -> None:
        free = [number for number, slot in enumerate(self._slots) if slot is None]
        entering: dict[int, _Occupied] = {}
        for slot in free:
            ticket = self._order.next()
            if ticket is None:
                break
            if self._kind is None or not self._kind.runs(ticket.table):
                # Rows of another kind: the batch runs empty first, and later requests do not overtake this one.
                if self.occupied:
                    break
                self._open(RowKind.of(ticket.table))
            assert self._rows is not None
            first_row = self._rows.take(ticket.table)
            if first_row is None:
                break
            place = self._order.grant(ticket)
            self._slots[slot] = entering[slot] = _Occupied(ticket, place, first_row, len(ticket.table))
            if ticket.state is State.WAITING:
                ticket.state, ticket.started_at = State.RUNNING, self._clock()
        if not entering:
            return
        assert self._chain is not None
        samples = list(entering.values())
        indices = [sample.ticket.request.start + sample.place for sample in samples]
        given = [sample.ticket.given.of([index]) for sample, index in zip(samples, indices, strict=True)]
        self._chain.begin(
            [sample.ticket.request.seed for sample in samples],
            indices,
            slots=list(entering),
            conditions=[np.concatenate(values) for values in zip(*given, strict=True)],
            first_rows=[sample.first_row for sample in samples],
        )

    def _run(self, running: list[_Occupied]) -> None:
        chain = self._chain
        assert chain is not None
        rows = min(chain.next_chunk(), *(slot.rows_left for slot in running))
        if len(running) < self.num_slots or any(slot.ticket.request.preview_every for slot in running):
            rows = min(rows, ROWS_WHILE_OPEN)
        chain.enqueue(rows)
        chain.wait()
        self.rows_run += rows
        self.last_occupied = len(running)
        tickets = {}
        for slot in running:
            slot.rows_left -= rows
            slot.ticket.rows_done += rows
            tickets[id(slot.ticket)] = slot.ticket
        self._show(rows)
        self._finish([number for number, slot in enumerate(self._slots) if slot is not None and slot.rows_left == 0])
        for ticket in tickets.values():
            if ticket.finished == ticket.request.num:
                self._end(ticket, State.DONE)
            else:
                ticket.changed()

    def _show(self, rows: int) -> None:
        """Previews for those who watch and whose samples have come far enough since the last one."""
        watched: dict[int, list[int]] = {}
        for number, slot in enumerate(self._slots):
            if slot is None or not slot.ticket.request.preview_every:
                continue
            every, done = slot.ticket.request.preview_every, slot.rows_done
            if done // every > (done - rows) // every or done == rows:
                watched.setdefault(id(slot.ticket), []).append(number)
        if not watched:
            return
        assert self._chain is not None
        x_start = self._chain.x_start
        assert x_start is not None
        for due in watched.values():
            numbers = [number for number in due if np.isfinite(x_start[number]).all()]  # a broken one is no picture
            shown = [slot for number in numbers if (slot := self._slots[number]) is not None]
            if not shown:
                continue
            ticket = shown[0].ticket
            ticket.preview = Preview(
                [slot.place for slot in shown], [slot.rows_done for slot in shown], x_start[numbers].copy()
            )
            if ticket.first_preview_at is None:
                ticket.first_preview_at = self._clock()

    def _finish(self, ended: list[int]) -> None:
        if not ended:
            return
        chain = self._chain
        assert chain is not None
        x, broken = chain.x, chain.broken_rows()
        for number in ended:
            slot = self._slots[number]
            assert slot is not None
            ticket = slot.ticket
            if broken[number] < 0:
                ticket.x[slot.place] = x[number]
            else:
                row = int(broken[number]) - slot.first_row
                index = ticket.request.start + slot.place
                ticket.non_finite.append(NonFiniteSample(index, row, int(ticket.table.timesteps[row])))
            ticket.finished += 1
        self._free(ended)

    def _free(self, numbers: list[int]) -> None:
        """Make slots idle: their samples would go on into the rows of the next table."""
        if not numbers:
            return
        assert self._chain is not None
        assert self._rows is not None
        rows = self._chain.row
        rows[numbers] = -1
        self._chain.row = rows
        for number in numbers:
            slot = self._slots[number]
            assert slot is not None
            self._rows.give_back(slot.ticket.table)
            self._slots[number] = None

    def _end(self, ticket: Ticket, state: State, error: str = "") -> None:
        ticket.state, ticket.error, ticket.ended_at = state, error, self._clock()
        ticket.changed()
