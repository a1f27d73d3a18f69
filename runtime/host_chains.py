"""The host chains of a sampler: each is leased to one caller at a time, and only a few are kept."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator

from diffusion.errors import InputError
from diffusion.step_table import StepTable
from runtime.chain_batch import ChainBatch
from runtime.engines.interface import Engine
from runtime.host_chain import HostChain
from runtime.own_process import OwnProcess

MAX_LEASED = 2
"""At work at once for one sampler; further callers wait. A network call uses all threads, so more gain nothing."""

MAX_KEPT = 3
"""Chains of a sampler, at work or ready for the next caller: a run's batch, its last and smaller one, and one more."""


class HostChains:
    """The chains of a sampler, kept between runs: those that were used last.

    Args:
        engine: the network.
        table: the rows.
        threads: of the step; 0 for as many as this process may use.
    """

    def __init__(self, engine: Engine, table: StepTable, threads: int = 0) -> None:
        self._engine, self._table, self._threads = engine, table, threads
        self._own_process = OwnProcess()
        self._changed = threading.Condition()
        self._leased: Counter[int] = Counter()  # how many by each thread
        self._idle: list[tuple[tuple[int, bool], HostChain]] = []  # what was used longest ago first

    def run(
        self, batches: Iterator[ChainBatch], largest: int, after_step: Callable[[int], None] | None = None
    ) -> Iterator[ChainBatch]:
        """Run batches to their ends, one after the other. The counterpart of `DeviceChains.run`.

        Nothing is held while the caller looks at a batch: that may take for ever, or need a chain of this sampler.

        Args:
            batches: at most `largest` samples each.
            largest: the most samples of a batch of this sampler.
            after_step: called after each step with the number of samples it moved.

        Raises:
            InputError: a batch that the engine does not take, or a process that was forked since.
        """
        for batch in batches:
            num = len(batch.seeds)
            with self.lease(slots_for(self._engine, num, largest), batch.trajectory is not None) as chain:
                chain.begin(batch.seeds, batch.sample_indices, batch.x_init)
                self._run(chain, batch, after_step)
                batch.x, batch.finite = chain.x[:num].copy(), chain.finite()[:num]
                batch.non_finite = chain.non_finite()
            yield batch

    def _run(self, chain: HostChain, batch: ChainBatch, after_step: Callable[[int], None] | None) -> None:
        num, trajectory = len(batch.seeds), batch.trajectory
        if trajectory is not None:
            trajectory.keep(0, batch.first, chain.x[:num], None)
        for step_index in range(len(self._table)):
            chain.step()
            if trajectory is not None:
                assert chain.x_start is not None, "trajectories need chains with x_start"
                trajectory.keep(step_index + 1, batch.first, chain.x[:num], chain.x_start[:num])
            if after_step is not None:
                after_step(num)

    @contextlib.contextmanager
    def lease(self, batch_size: int, with_x_start: bool = False) -> Iterator[HostChain]:
        """A chain that is nobody else's for the length of a `with` block, in which no generator may be suspended.

        Waits while `MAX_LEASED` chains are at work. A thread that has one already, because it samples from within
        `after_step`, does not wait for itself: it gets one more.

        Args:
            batch_size: slots.
            with_x_start: whether `x_start` is kept.

        Raises:
            InputError: a batch that the engine does not take, or a process that was forked since.
        """
        self._own_process.check("a sampler")
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


def check_fixed_batch(engine: Engine, batch_size: int) -> None:
    """Raises InputError if the file fixes another batch than the one that was asked for."""
    fixed = engine.fixed_batch
    if fixed is not None and batch_size != fixed:
        raise InputError(
            f"batch size is {batch_size}, and {engine.name} has a file that takes batches of {fixed} alone; "
            f"leave --batch-size out, or export it again with a dynamic first axis"
        )


def slots_for(engine: Engine, num: int, largest: int) -> int:
    """Slots of the chain that runs `num` ≤ `largest` samples; those that are left over stay idle."""
    return engine.fixed_batch or min(largest, engine.padded_batch(num))
