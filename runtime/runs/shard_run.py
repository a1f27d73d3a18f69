"""Draws the shards of a run that are not done, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from commands.errors import StoppedError
from diffusion.errors import InputError
from runtime.chain.pool import Batch
from runtime.conditions import GivenConditions
from runtime.formats.shard_record import ShardRecord
from runtime.runs.shard_drawing import AfterStep, draw_shard
from runtime.runs.shard_folder import ShardFolder
from runtime.runs.shard_progress import RunProgress
from runtime.runs.shards import Shard
from runtime.runs.step_time import StepTime
from runtime.sampler import Sampler


class SamplerSource:
    """The batches of a run, drawn by a sampler: a `BatchSource`.

    Args:
        sampler: of the run's batch size.
        seed, start: of the run.
        x_init: float32 [num, C, H, W], of the whole run; None for noise.
        given: the conditions of the run.
    """

    def __init__(
        self, sampler: Sampler, seed: int, start: int, x_init: np.ndarray | None, given: GivenConditions | None = None
    ) -> None:
        self._sampler, self._seed, self._start, self._x_init, self._given = sampler, seed, start, x_init, given

    def __call__(self, first: int, num: int, after_step: AfterStep | None) -> Iterator[Batch]:
        """As `BatchSource`. Samples outside the run, which are dropped, begin with zeros where states are given."""
        states = None
        if self._x_init is not None:
            states = np.zeros((num, *self._x_init.shape[1:]), dtype=np.float32)
            begin, end = max(first, self._start), min(first + num, self._start + len(self._x_init))
            states[begin - first : end - first] = self._x_init[begin - self._start : end - self._start]
        return self._sampler.batches(num, self._seed, first, states, after_step, given=self._given)


def draw_shards(
    source: SamplerSource, folder: ShardFolder, shards: Sequence[Shard], resume: bool, progress: RunProgress
) -> list[ShardRecord]:
    """Draw shards one after the other.

    Args:
        source: of their batches.
        folder: claimed.
        shards: that are not done.
        resume: as of `draw_shard`.
        progress: is told of every step and batch.

    Raises:
        StoppedError: Ctrl-C; what is finished is kept.
        InputError: something cannot be written; the error says what is kept.
    """
    clock = StepTime()

    def after_step(num: int) -> None:
        clock.step()
        progress.step(num)

    def after_batch(num: int) -> None:
        clock.other()
        progress.spent(*clock.taken())
        progress.batch(num)

    try:
        return [draw_shard(source, folder, shard, resume, after_step, after_batch) for shard in shards]
    except KeyboardInterrupt:
        raise StoppedError(f"interrupted; {kept_in(folder)}") from None
    except InputError as error:
        raise InputError(f"{error}; {kept_in(folder)}") from error


def kept_in(folder: ShardFolder) -> str:
    """What an error does not cost, in words."""
    return f"what is finished is kept in {folder.store.place()}: the same command with --resume goes on"
