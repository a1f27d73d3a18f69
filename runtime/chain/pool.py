"""The chains of a sampler: what every pool does, and the course of one batch through a chain."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from runtime.chain.interface import Chain
from runtime.chain.plan import ChainPlan
from runtime.formats.run_manifest import NonFiniteSample
from runtime.trajectory import Trajectory


@dataclass(frozen=True)
class NewBatch:
    """Samples that are to be drawn together.

    Attributes:
        first: place in the run of the first.
        seeds, sample_indices: n each.
        x_init: float32 [n, C, H, W] to begin from; None for noise.
        trajectory: to be shown the states; None for no one.
        conditions: [n, …] for each condition of the process.
    """

    first: int
    seeds: list[int]
    sample_indices: list[int]
    x_init: np.ndarray | None = None
    trajectory: Trajectory | None = None
    conditions: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Samples that are done.

    Attributes:
        sample_indices: uint64 [n], of the samples that are finite.
        x: float32 [n, C, H, W], those samples.
        non_finite: the others.
    """

    sample_indices: np.ndarray
    x: np.ndarray
    non_finite: list[NonFiniteSample]


class BatchOnChain:
    """A batch on its way through a chain: begun when this is made, then run in chunks of rows.

    Args:
        chain: runs this batch alone until it is done.
        batch: its samples.

    Attributes:
        result: None until the last row is done.
    """

    def __init__(self, chain: Chain, batch: NewBatch) -> None:
        self.chain, self._batch = chain, batch
        self._num = len(batch.seeds)
        self._rows_done = self._rows_running = 0
        self.result: Batch | None = None
        chain.begin(batch.seeds, batch.sample_indices, batch.x_init, conditions=batch.conditions)
        if batch.trajectory is not None:
            batch.trajectory.keep(0, batch.first, chain.x[: self._num], None)

    def launch(self) -> None:
        """Enqueue the next chunk; it ends where the trajectory wants to see a state."""
        rows, trajectory = self.chain.next_chunk(), self._batch.trajectory
        if trajectory is not None:
            rows = min(rows, trajectory.next_stop(self._rows_done) - self._rows_done)
        self.chain.enqueue(rows)
        self._rows_running = rows

    def finish(self) -> list[int]:
        """Wait for the chunk, and take the result after the last one.

        Returns:
            for each row of the chunk, how many samples it moved: what `after_step` is to be called with.
        """
        chain, batch, num = self.chain, self._batch, self._num
        chain.wait()
        rows, self._rows_running = self._rows_running, 0
        self._rows_done += rows
        if batch.trajectory is not None:
            x_start = chain.x_start
            assert x_start is not None, "trajectories need chains with x_start"
            batch.trajectory.keep(self._rows_done, batch.first, chain.x[:num], x_start[:num])
        if chain.rows_left == 0:
            finite = chain.finite()[:num]
            # Indexing by an array copies: the chain's own buffer is for the next batch.
            self.result = Batch(
                np.array(batch.sample_indices, dtype=np.uint64)[finite], chain.x[:num][finite], chain.non_finite()
            )
        return [num] * rows


class ChainPool(abc.ABC):
    """The chains of a sampler, kept between runs. Threads may share it.

    Nothing is held while a caller looks at a batch: that may take for ever, or need a chain of this pool.
    """

    @abc.abstractmethod
    def plan(self, num: int, with_x_start: bool = False) -> ChainPlan:
        """What drawing `num` samples will take, before it is taken.

        Args:
            num: samples.
            with_x_start: whether a trajectory is kept.

        Raises:
            InputError: a batch that the engine does not take, or that does not fit into memory.
        """

    @abc.abstractmethod
    def run(
        self, plan: ChainPlan, batches: Iterator[NewBatch], after_step: Callable[[int], None] | None = None
    ) -> Iterator[Batch]:
        """Run batches to their ends; they come out in the order they went in.

        Args:
            plan: of these batches.
            batches: at most `plan.batch_size` samples each.
            after_step: called for each row of each batch, once its chunk is done, with the number of samples it moved.

        Raises:
            InputError: a batch that the engine does not take, too little memory for a single chain, or an engine that
                was opened before this process was forked.
            RuntimeError: CUDA, or the engine, failed.
        """
