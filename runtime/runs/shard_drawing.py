"""Draws shards: batch by batch into a journal, and whole ones into the folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol

import numpy as np

from runtime.chain.pool import Batch
from runtime.formats.shard_record import ShardRecord
from runtime.images import quantize
from runtime.runs.journal import Journal, KeptBatch
from runtime.runs.shard_folder import ShardFolder
from runtime.runs.shards import Shard, ShardPlan

AfterStep = Callable[[int], None]

WORK_PER_WRITING = 300.0
"""Seconds of drawing for each second in which the journal is written: it takes no more than a third of a percent."""

_USUAL_WRITING_SECONDS = 0.005


class BatchSource(Protocol):
    """Draws the samples of a run."""

    def __call__(self, first: int, num: int, after_step: AfterStep | None) -> Iterator[Batch]:
        """Samples first..first+num−1, whole batches, in the order of their indices, as `Sampler.batches`."""


def draw_shard(
    source: BatchSource,
    folder: ShardFolder,
    shard: Shard,
    resume: bool,
    after_step: AfterStep | None = None,
    after_batch: AfterStep | None = None,
) -> ShardRecord:
    """Draw what is missing of a shard, and publish it.

    Args:
        source: draws the batches.
        folder: claimed.
        shard: of its plan.
        resume: whether what a killed program finished of the shard is taken, or the whole shard where another program
            finished it.
        after_step: as of `Sampler.batches`.
        after_batch: called with the number of samples that are done, those that were found done at first; and with 0
            when the shard is published.

    Raises:
        InputError: another program is drawing it, or something cannot be written.
    """
    journal = folder.journal(shard)
    with folder.store.drawing(folder.identity, shard.name, folder.file(shard)):
        # It may have been found damaged by its hash before, so nothing less counts here.
        if resume and shard in (done := folder.done([shard], verify=True, say_damage=False)):
            return done[shard]
        if not resume:
            journal.remove()
        kept = journal.read()
        begin = kept[-1].end if kept else shard.first
        if kept and after_batch is not None:
            after_batch(begin - shard.first)
        if begin < shard.end:
            with _Keeping(journal) as keep:
                for batch in _left_batches(source, folder.plan, begin, shard.end, after_step):
                    kept.append(batch)
                    if batch.end < shard.end:  # the last one goes into the shard at once
                        keep(batch)
                    if after_batch is not None:
                        after_batch(batch.end - batch.first)
        record = folder.publish(
            shard,
            [index for each in kept for index in each.indices],
            np.concatenate([each.images for each in kept]),
            tuple(sample for each in kept for sample in each.non_finite),
        )
        journal.remove()
    if after_batch is not None:
        after_batch(0)
    return record


def _left_batches(
    source: BatchSource, plan: ShardPlan, begin: int, end: int, after_step: AfterStep | None
) -> Iterator[KeptBatch]:
    first, last = plan.whole_batches(begin, end)
    for place, batch in enumerate(source(first, last - first, after_step)):
        at = first + place * plan.batch_size
        yield _within(batch, max(begin, at), min(end, at + plan.batch_size))


class _Keeping:
    """Adds batches to a journal: each one, or several together where they take no time compared with the writing.

    So a kill costs a batch, or as much work as the disk makes worth keeping: with one that takes 5 ms, 1.5 seconds.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal, self._waiting = journal, list[KeptBatch]()
        self._added_at, self._writing_seconds = time.monotonic(), _USUAL_WRITING_SECONDS

    def __enter__(self) -> _Keeping:
        return self

    def __call__(self, batch: KeptBatch) -> None:
        self._waiting.append(batch)
        began = time.monotonic()
        if began - self._added_at >= WORK_PER_WRITING * self._writing_seconds:
            self._journal.add(self._waiting)
            self._waiting, self._added_at = [], time.monotonic()
            self._writing_seconds = self._added_at - began

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._journal.add(self._waiting)


def _within(batch: Batch, first: int, end: int) -> KeptBatch:
    """The samples of a batch that lie in a range; its other samples belong to another shard, or to none."""
    inside = (batch.sample_indices >= first) & (batch.sample_indices < end)
    broken = tuple(sample for sample in batch.non_finite if first <= sample.sample_index < end)
    return KeptBatch(first, end, quantize(batch.x[inside]), tuple(sorted(broken, key=lambda each: each.sample_index)))
