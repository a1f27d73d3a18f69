"""The host chains of a sampler: each is leased to one caller at a time, and only a few are kept."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator

from diffusion.philox import MAX_SEED
from diffusion.step_table import StepTable
from runtime.chain.host import HostChain
from runtime.chain.plan import ChainPlan, check_host_batch, host_batch_size
from runtime.chain.pool import Batch, BatchOnChain, ChainPool, NewBatch
from runtime.engines.interface import Engine

MAX_LEASED = 2
"""At work at once for one sampler; further callers wait. A network call uses all threads, so more gain nothing."""

MAX_KEPT = 3
"""Chains of a sampler, at work or ready for the next caller: a run's batch, its last and smaller one, and one more."""


class HostPool(ChainPool):
    """Chains on the host; those that were used last are kept.

    Args:
        engine: the network.
        table: the rows.
        batch_size: that was asked for; None to choose.
        threads: of the step; 0 for as many as this process may use.

    Raises:
        InputError: a batch size that the engine does not take, or that does not fit into memory.
    """

    def __init__(self, engine: Engine, table: StepTable, batch_size: int | None, threads: int = 0) -> None:
        if batch_size is not None:
            check_host_batch(engine, table, batch_size)
        self._engine, self._table, self._batch_size, self._threads = engine, table, batch_size, threads
        self._largest = host_batch_size(engine, MAX_SEED, batch_size)
        self._changed = threading.Condition()
        self._leased: Counter[int] = Counter()  # how many by each thread
        self._idle: list[tuple[tuple[int, bool], HostChain]] = []  # what was used longest ago first

    def plan(self, num: int, with_x_start: bool = False) -> ChainPlan:
        """As `ChainPool.plan`."""
        return ChainPlan(host_batch_size(self._engine, num, self._batch_size), with_x_start=with_x_start)

    def run(
        self, plan: ChainPlan, batches: Iterator[NewBatch], after_step: Callable[[int], None] | None = None
    ) -> Iterator[Batch]:
        """As `ChainPool.run`, one batch after the other. Only batches that a trajectory follows keep x_start."""
        for batch in batches:
            yield self._draw(batch, after_step)

    def _draw(self, batch: NewBatch, after_step: Callable[[int], None] | None) -> Batch:
        num = len(batch.seeds)  # slots that are left over stay idle
        slots = self._engine.fixed_batch or min(self._largest, self._engine.padded_batch(num))
        with self.lease(slots, batch.trajectory is not None) as chain:
            running = BatchOnChain(chain, batch)
            while running.result is None:
                running.launch()
                for moved in running.finish():
                    if after_step is not None:
                        after_step(moved)
        return running.result

    @contextlib.contextmanager
    def lease(self, batch_size: int, with_x_start: bool = False) -> Iterator[HostChain]:
        """A chain for the caller alone during a `with` block, in which no generator may be suspended.

        Waits while `MAX_LEASED` chains are at work. A thread that has one already, because it samples from within
        `after_step`, does not wait for itself: it gets one more.

        Args:
            batch_size: slots.
            with_x_start: whether `x_start` is kept.

        Raises:
            InputError: a batch that the engine does not take, or an engine that was opened in another process.
        """
        self._engine.check_process()
        key = (batch_size, with_x_start)
        chain = self._take(key)
        try:
            yield chain
        except BaseException:
            self._give_back()  # a chain that was stopped on its way is not kept
            raise
        self._give_back((key, chain))

    def _take(self, key: tuple[int, bool]) -> HostChain:
        thread = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: self._leased.total() < MAX_LEASED or thread in self._leased)
            self._leased[thread] += 1
            for place in reversed(range(len(self._idle))):
                if self._idle[place][0] == key:
                    return self._idle.pop(place)[1]
            self._drop_oldest()
        try:  # which may take seconds, in which other callers can work
            return HostChain(self._engine, self._table, *key, self._threads)
        except BaseException:
            self._give_back()
            raise

    def _give_back(self, kept: tuple[tuple[int, bool], HostChain] | None = None) -> None:
        thread = threading.get_ident()
        with self._changed:
            self._leased[thread] -= 1
            if not self._leased[thread]:
                del self._leased[thread]
            if kept is not None:
                self._idle.append(kept)
            self._drop_oldest()
            self._changed.notify()

    def _drop_oldest(self) -> None:
        while self._idle and len(self._idle) + self._leased.total() > MAX_KEPT:
            del self._idle[0]
