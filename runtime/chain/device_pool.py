"""Batches on a GPU, several in flight: while one is read, another runs."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator

from diffusion.errors import InputError
from diffusion.step_table import StepTable
from runtime.chain.device import DeviceChain
from runtime.chain.launchers import MEASURED
from runtime.chain.plan import ChainPlan, plan_device
from runtime.chain.pool import Batch, BatchOnChain, ChainPool, NewBatch
from runtime.device.interface import DeviceEngine

_log = logging.getLogger(__name__)


class _Run:
    """One call of `DevicePool.run`: what is on its way, and what its caller has yet to be told."""

    def __init__(self, plan: ChainPlan, batches: Iterator[NewBatch]) -> None:
        self.plan, self.most = plan, plan.chains
        self.batches = batches
        self.waiting = next(batches, None)
        self.running: deque[BatchOnChain] = deque()  # what was launched longest ago first
        self.in_order: deque[BatchOnChain] = deque()
        self.moved: list[int] = []  # samples moved by each row that is through
        self.error: Exception | None = None  # that another caller met
        self.abandoned = False

    def wait(self) -> None:
        """Wait for what is on the streams, which reads and writes buffers that the next run will use."""
        for each in self.running:
            with contextlib.suppress(RuntimeError):
                each.chain.wait()
        self.running.clear()

    def take_ready(self) -> list[Batch]:
        """The batches that are done, up to the first that is not."""
        ready = []
        while self.in_order and (result := self.in_order[0].result) is not None:
            ready.append(result)
            self.in_order.popleft()
        return ready

    def take_moved(self) -> list[int]:
        """What `after_step` is to be called with."""
        moved, self.moved = self.moved, []
        return moved


class DevicePool(ChainPool):
    """Chains on a GPU, kept as long as the same ones are needed.

    One caller at a time drives the GPU, and none while a caller looks at a batch or is told of a step. A caller that
    finds another one's batches on the GPU runs them to their ends, for that one to find, and goes on with the chains.

    Args:
        engine: the network.
        table: the rows.
        batch_size: that was asked for; None to choose.
        graph: one of `runtime.chain.launchers.GRAPH_KINDS`, see `DeviceChain`.

    Raises:
        InputError: a batch size that the engine does not take, or that does not fit into memory.
    """

    def __init__(self, engine: DeviceEngine, table: StepTable, batch_size: int | None, graph: str = MEASURED) -> None:
        if batch_size is not None:
            plan_device(engine, table, batch_size, batch_size)
        self._engine, self._table, self._batch_size, self._graph = engine, table, batch_size, graph
        self._key = (0, False)
        self._chains: list[DeviceChain] = []
        self._turn = threading.Lock()  # of everything here, and of every run
        self._holder: _Run | None = None  # whose batches may be on the chains

    def plan(self, num: int, with_x_start: bool = False) -> ChainPlan:
        """As `ChainPool.plan`; the chains that are kept will make room."""
        with self._turn:
            held = sum(chain.buffer_bytes for chain in self._chains)
            return plan_device(self._engine, self._table, num, self._batch_size, with_x_start, held)

    def run(
        self, plan: ChainPlan, batches: Iterator[NewBatch], after_step: Callable[[int], None] | None = None
    ) -> Iterator[Batch]:
        """As `ChainPool.run`, `plan.chains` batches in flight."""
        self._engine.check_process()
        run = _Run(plan, batches)
        try:
            while True:
                with self._turn:
                    self._claim(run)
                    # A chain that is free goes on with the next batch before the caller takes its time over the last.
                    self._begin_waiting(run)
                    ready = run.take_ready()
                    if not ready and run.running:
                        self._advance(run)
                    done = not (run.running or run.in_order)
                    moved = run.take_moved()
                if after_step is not None:
                    for num in moved:
                        after_step(num)
                yield from ready
                if done:
                    return
        finally:
            # Whoever has the turn now has either settled this run already, or will find it abandoned.
            run.abandoned = True
            if self._turn.acquire(blocking=False):
                try:
                    if self._holder is run:
                        self._settle()
                finally:
                    self._turn.release()

    def _claim(self, run: _Run) -> None:
        if self._holder is not run:
            self._settle()
            self._holder = run
            # Another batch is another graph and other buffers; device memory is for the ones in use.
            key = (run.plan.batch_size, run.plan.with_x_start)
            if self._key != key:
                while self._chains:
                    self._chains.pop().close()
                self._key = key
        if run.error is not None:
            raise run.error

    def _settle(self) -> None:
        """Run what is on the chains to its end, if its caller will come back for it; then they are free."""
        run = self._holder
        if run is None:
            return
        try:
            while run.running and not run.abandoned:
                self._advance(run)
        except Exception as error:
            run.error = error
        run.wait()
        self._holder = None

    def _begin_waiting(self, run: _Run) -> None:
        while run.waiting is not None and len(run.running) < run.most:
            chain = self._free_chain(run)
            if chain is None:
                run.most = len(run.running)
                continue
            batch = BatchOnChain(chain, run.waiting)
            run.in_order.append(batch)
            run.running.append(batch)
            batch.launch()
            run.waiting = next(run.batches, None)

    def _free_chain(self, run: _Run) -> DeviceChain | None:
        busy = [each.chain for each in run.running]
        for chain in self._chains:
            if chain not in busy:
                return chain
        batch_size, with_x_start = self._key
        try:
            chain = DeviceChain(self._engine, self._table, batch_size, with_x_start, graph=self._graph)
        except InputError as error:
            if not busy:
                raise
            _log.warning("one batch in flight instead of %d: %s", len(busy) + 1, error)
            return None
        self._chains.append(chain)
        return chain

    def _advance(self, run: _Run) -> None:
        """Wait for the chunk that was launched first, and launch the next one of its batch."""
        first = run.running[0]
        run.moved += first.finish()
        run.running.popleft()
        if first.result is None:
            run.running.append(first)
            first.launch()
