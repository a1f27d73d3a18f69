"""Batches on a GPU, several in flight: while one is read, another runs."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from diffusion.errors import InputError
from diffusion.step_table import StepTable
from runtime.device.interface import DeviceEngine
from runtime.device.plan import DevicePlan
from runtime.device_chain import DeviceChain
from runtime.host_chain import NonFiniteSample
from runtime.trajectory import Trajectory

_log = logging.getLogger(__name__)


@dataclass
class DeviceBatch:
    """One batch on its way, and then its result.

    Attributes:
        first: place in the run of its first sample.
        seeds, sample_indices: of its samples.
        x_init: states to begin from; None for noise.
        trajectory: to be shown the states; None for no one.
        rows_done: how many rows are through.
        rows_running: how many are on the stream.
        x, finite, non_finite: the result, once the last row is through.
    """

    first: int
    seeds: list[int]
    sample_indices: list[int]
    x_init: np.ndarray | None
    trajectory: Trajectory | None
    rows_done: int = 0
    rows_running: int = 0
    x: np.ndarray | None = None
    finite: np.ndarray | None = None
    non_finite: list[NonFiniteSample] = field(default_factory=list)


class DeviceChains:
    """The chains of a sampler, kept between runs as long as the same ones are needed.

    Args:
        engine: the network.
        table: the rows.
        graph: one of `runtime.device.chain_graph.GRAPH_KINDS`, see `DeviceChain`.
    """

    def __init__(self, engine: DeviceEngine, table: StepTable, graph: str = "while") -> None:
        self._engine, self._table, self._graph = engine, table, graph
        self._key = (0, False)
        self._chains: list[DeviceChain] = []

    @property
    def held_bytes(self) -> int:
        """Device memory of the chains that are kept."""
        return sum(chain.device_bytes for chain in self._chains)

    def run(
        self,
        plan: DevicePlan,
        batches: Iterator[DeviceBatch],
        after_step: Callable[[int], None] | None = None,
        with_x_start: bool = False,
    ) -> Iterator[DeviceBatch]:
        """Run batches to their ends; they come out in the order they went in.

        Args:
            plan: how large the chains are and how many are in flight.
            batches: at most `plan.batch_size` samples each.
            after_step: called for each row of each batch, once its chunk is through, with its number of samples.
            with_x_start: whether the chains keep x_start, for trajectories.

        Raises:
            InputError: too little device memory for a single chain.
            RuntimeError: CUDA, or the engine, failed.
        """
        self._keep_only(plan.batch_size, with_x_start)
        most, begun = plan.chains, 0
        idle: list[DeviceChain] = []
        running: deque[tuple[DeviceChain, DeviceBatch]] = deque()  # what was launched longest ago first
        in_order: deque[DeviceBatch] = deque()
        waiting = next(batches, None)
        try:
            while True:
                # A chain that is free goes on with the next batch before the caller takes its time over the last one.
                while waiting is not None and (idle or begun < most):
                    chain = idle.pop() if idle else self._chain(begun)
                    if chain is None:
                        most = begun
                        continue
                    begun = max(begun, 1 + self._chains.index(chain))
                    self._begin(chain, waiting)
                    running.append((chain, waiting))
                    in_order.append(waiting)
                    waiting = next(batches, None)
                while in_order and in_order[0].x is not None:
                    yield in_order.popleft()
                if not running:
                    return
                chain, batch = running[0]
                self._finish_chunk(chain, batch, after_step)
                running.popleft()
                if batch.x is None:
                    self._launch_chunk(chain, batch)
                    running.append((chain, batch))
                else:
                    idle.append(chain)
        finally:
            # Stopped on the way: what is on the streams reads and writes buffers that the next run will use.
            for chain, _ in running:
                with contextlib.suppress(RuntimeError):
                    chain.wait()

    def close(self) -> None:
        """Give all chains back."""
        while self._chains:
            self._chains.pop().close()

    def _keep_only(self, batch_size: int, with_x_start: bool) -> None:
        # Another batch is another graph and other buffers; device memory is for the ones in use.
        if self._key != (batch_size, with_x_start):
            self.close()
            self._key = (batch_size, with_x_start)

    def _chain(self, number: int) -> DeviceChain | None:
        if number < len(self._chains):
            return self._chains[number]
        batch_size, with_x_start = self._key
        try:
            chain = DeviceChain(self._engine, self._table, batch_size, with_x_start, graph=self._graph)
        except InputError as error:
            if number == 0:
                raise
            _log.warning("one batch in flight instead of %d: %s", number + 1, error)
            return None
        self._chains.append(chain)
        return chain

    def _begin(self, chain: DeviceChain, batch: DeviceBatch) -> None:
        chain.begin(batch.seeds, batch.sample_indices, batch.x_init)
        if batch.trajectory is not None:
            batch.trajectory.keep(0, batch.first, chain.x[: len(batch.seeds)], None)
        self._launch_chunk(chain, batch)

    def _launch_chunk(self, chain: DeviceChain, batch: DeviceBatch) -> None:
        rows = chain.next_chunk()
        if batch.trajectory is not None:
            rows = min(rows, batch.trajectory.next_stop(batch.rows_done) - batch.rows_done)
        chain.enqueue(rows)
        batch.rows_running = rows

    def _finish_chunk(self, chain: DeviceChain, batch: DeviceBatch, after_step: Callable[[int], None] | None) -> None:
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
        if after_step is not None:
            for _ in range(rows):
                after_step(num)
