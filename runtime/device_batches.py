"""Batches on a GPU, several in flight: while one is read, another runs."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator

from diffusion.errors import InputError
from diffusion.step_table import StepTable
from runtime.chain_batch import ChainBatch
from runtime.device.interface import DeviceEngine
from runtime.device.plan import DevicePlan, plan_device
from runtime.device_chain import DeviceChain
from runtime.own_process import OwnProcess

_log = logging.getLogger(__name__)


class _Run:
    """One call of `DeviceChains.run`: what is on its way, and what its caller has yet to be told."""

    def __init__(self, plan: DevicePlan, batches: Iterator[ChainBatch], with_x_start: bool) -> None:
        self.plan, self.with_x_start, self.most = plan, with_x_start, plan.chains
        self.batches = batches
        self.waiting = next(batches, None)
        self.running: deque[tuple[DeviceChain, ChainBatch]] = deque()  # what was launched longest ago first
        self.in_order: deque[ChainBatch] = deque()
        self.moved: list[int] = []  # samples moved by each row that is through
        self.error: Exception | None = None  # that another caller met
        self.abandoned = False

    def wait(self) -> None:
        """Wait for what is on the streams, which reads and writes buffers that the next run will use."""
        for chain, _ in self.running:
            with contextlib.suppress(RuntimeError):
                chain.wait()
        self.running.clear()

    def take_ready(self) -> list[ChainBatch]:
        """The batches that are done, up to the first that is not."""
        ready = []
        while self.in_order and self.in_order[0].x is not None:
            ready.append(self.in_order.popleft())
        return ready

    def take_moved(self) -> list[int]:
        """What `after_step` is to be called with."""
        moved, self.moved = self.moved, []
        return moved


class DeviceChains:
    """The chains of a sampler, kept between runs as long as the same ones are needed.

    Threads may share them. One caller at a time drives the GPU, and nobody while a caller looks at a batch or is told
    of a step. A caller that finds another one's batches on the GPU runs them to their ends, for that one to find, and
    goes on with the chains.

    Args:
        engine: the network.
        table: the rows.
        graph: one of `runtime.device.chain_graph.GRAPH_KINDS`, see `DeviceChain`.
    """

    def __init__(self, engine: DeviceEngine, table: StepTable, graph: str = "while") -> None:
        self._engine, self._table, self._graph = engine, table, graph
        self._own_process = OwnProcess()
        self._key = (0, False)
        self._chains: list[DeviceChain] = []
        self._turn = threading.Lock()  # of everything here, and of every run
        self._holder: _Run | None = None  # whose batches may be on the chains

    def plan(self, num: int, wanted: int | None, with_x_start: bool = False) -> DevicePlan:
        """What drawing `num` samples will take, as `plan_device`; the chains that are kept will make room."""
        with self._turn:
            held = sum(chain.device_bytes for chain in self._chains)
            return plan_device(self._engine, self._table, num, wanted, with_x_start, held)

    def run(
        self,
        plan: DevicePlan,
        batches: Iterator[ChainBatch],
        after_step: Callable[[int], None] | None = None,
        with_x_start: bool = False,
    ) -> Iterator[ChainBatch]:
        """Run batches to their ends; they come out in the order they went in.

        Args:
            plan: how large the chains are and how many are in flight.
            batches: at most `plan.batch_size` samples each.
            after_step: called for each row of each batch, once its chunk is through, with its number of samples.
            with_x_start: whether the chains keep x_start, for trajectories.

        Raises:
            InputError: too little device memory for a single chain, or a process that was forked since.
            RuntimeError: CUDA, or the engine, failed.
        """
        self._own_process.check("a sampler")
        run = _Run(plan, batches, with_x_start)
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

    def close(self) -> None:
        """Give all chains back."""
        with self._turn:
            self._settle()
            self._drop_chains()

    def _drop_chains(self) -> None:
        while self._chains:
            self._chains.pop().close()

    def _claim(self, run: _Run) -> None:
        if self._holder is not run:
            self._settle()
            self._holder = run
            # Another batch is another graph and other buffers; device memory is for the ones in use.
            key = (run.plan.batch_size, run.with_x_start)
            if self._key != key:
                self._drop_chains()
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
            batch = run.waiting
            run.in_order.append(batch)
            run.running.append((chain, batch))
            self._begin(chain, batch)
            run.waiting = next(run.batches, None)

    def _free_chain(self, run: _Run) -> DeviceChain | None:
        busy = [chain for chain, _ in run.running]
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
        chain, batch = run.running[0]
        self._finish_chunk(chain, batch, run.moved)
        run.running.popleft()
        if batch.x is None:
            run.running.append((chain, batch))
            self._launch_chunk(chain, batch)

    def _begin(self, chain: DeviceChain, batch: ChainBatch) -> None:
        chain.begin(batch.seeds, batch.sample_indices, batch.x_init)
        if batch.trajectory is not None:
            batch.trajectory.keep(0, batch.first, chain.x[: len(batch.seeds)], None)
        self._launch_chunk(chain, batch)

    def _launch_chunk(self, chain: DeviceChain, batch: ChainBatch) -> None:
        rows = chain.next_chunk()
        if batch.trajectory is not None:
            rows = min(rows, batch.trajectory.next_stop(batch.rows_done) - batch.rows_done)
        chain.enqueue(rows)
        batch.rows_running = rows

    def _finish_chunk(self, chain: DeviceChain, batch: ChainBatch, moved: list[int]) -> None:
        chain.wait()
        num = len(batch.seeds)
        rows, batch.rows_running = batch.rows_running, 0
        batch.rows_done += rows
        if batch.trajectory is not None:
            x_start = chain.x_start
            assert x_start is not None, "trajectories need chains with x_start"
            batch.trajectory.keep(batch.rows_done, batch.first, chain.x[:num], x_start[:num])
        if chain.rows_left == 0:
            batch.x, batch.finite, batch.non_finite = chain.x[:num], chain.finite()[:num], chain.non_finite()
        moved += [num] * rows
