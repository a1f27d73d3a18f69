"""Draws shards: batch by batch into a journal, and whole ones into the folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from runtime.chain.pool import Batch
from runtime.formats.shard_record import ShardRecord
from runtime.images import quantize
from runtime.runs.journal import KeptBatch
from runtime.runs.shard_folder import ShardFolder
from runtime.runs.shards import Shard

AfterStep = Callable[[int], None]


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
        after_batch: called with the number of samples that are done, those that were found done at first.

    Raises:
        InputError: another program is drawing it, or something cannot be written.
    """
    journal = folder.journal(shard)
    with folder.drawing(shard):
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
            first, end = folder.plan.whole_batches(begin, shard.end)
            size = folder.plan.batch_size
            for place, batch in enumerate(source(first, end - first, after_step)):
                place_end = first + (place + 1) * size
                kept.append(_within(batch, max(begin, first + place * size), min(shard.end, place_end)))
                if kept[-1].end < shard.end:  # the last one goes into the shard at once
                    journal.add(kept[-1])
                if after_batch is not None:
                    after_batch(kept[-1].end - kept[-1].first)
        record = folder.publish(
            shard,
            [index for each in kept for index in each.indices],
            np.concatenate([each.images for each in kept]),
            tuple(sample for each in kept for sample in each.non_finite),
        )
        journal.remove()
    return record


def _within(batch: Batch, first: int, end: int) -> KeptBatch:
    """The samples of a batch that lie in a range; its other samples belong to another shard, or to none."""
    inside = (batch.sample_indices >= first) & (batch.sample_indices < end)
    broken = tuple(sample for sample in batch.non_finite if first <= sample.sample_index < end)
    return KeptBatch(first, end, quantize(batch.x[inside]), tuple(sorted(broken, key=lambda each: each.sample_index)))
