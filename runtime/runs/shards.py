"""How a run is cut: into shards, which are files, and a shard into batches, which are drawn together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from diffusion.errors import InputError
from diffusion.number_checks import shown
from diffusion.philox import MAX_SEED

SHARDED_ABOVE = 4096
"""Samples; a larger run is cut into shards unless its format has none."""

USUAL_SHARD_SIZE = 1000

MAX_SHARDS = 1 << 22
"""Of a run: more are no folder that a file system likes, and a list of them no longer fits into memory."""


_NAME = re.compile(r"shard-(\d{9,20})-\d{9,20}")


@dataclass(frozen=True)
class Shard:
    """The samples with indices first..first+num−1.

    Attributes:
        first: sample index.
        num: samples, at least 1.
    """

    first: int
    num: int

    @property
    def end(self) -> int:
        """The index after the last."""
        return self.first + self.num

    @property
    def name(self) -> str:
        """Of its files, without a suffix."""
        return f"shard-{self.first:09d}-{self.end - 1:09d}"


@dataclass(frozen=True)
class ShardPlan:
    """The shards of a run, and its batches.

    Both are cut where the sample index is a multiple, so that a sample has the same neighbours in its batch wherever
    the run begins or was cut: a batch that lies partly outside is drawn whole, and what lies outside is dropped. Thus
    bits never depend on the cut, even where a library rounds otherwise in another place of a batch.

    Attributes:
        start, num: of the run.
        shard_size: samples of each shard; the first and the last may have fewer.
        batch_size: samples of each network call.
    """

    start: int
    num: int
    shard_size: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.start + self.num > MAX_SEED - self.batch_size:
            raise InputError(
                f"start is {shown(self.start)}, expected start + num at most 2^64 - {self.batch_size}, so that the "
                "last batch is a whole one"
            )
        if self._count > MAX_SHARDS:
            raise InputError(
                f"{shown(self.num)} samples in shards of {shown(self.shard_size)} make {shown(self._count)} shards, "
                f"expected at most {MAX_SHARDS:,}; give a larger --shard-size"
            )

    @property
    def _count(self) -> int:
        return -(-(self.start + self.num) // self.shard_size) - self.start // self.shard_size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> Shard:
        if not 0 <= place < len(self):
            raise IndexError(place)
        number = self.start // self.shard_size + place
        first = max(self.start, number * self.shard_size)
        return Shard(first, min(self.start + self.num, (number + 1) * self.shard_size) - first)

    def __iter__(self) -> Iterator[Shard]:
        return (self[place] for place in range(len(self)))

    def named(self, names: Iterable[str]) -> list[Shard]:
        """The shards with these names, in order; of other names there is none. A plan may have millions."""
        found = []
        for name in names:
            match = _NAME.fullmatch(name)
            place = int(match[1]) // self.shard_size - self.start // self.shard_size if match else -1
            if 0 <= place < len(self) and self[place].name == name:
                found.append(self[place])
        return sorted(found, key=lambda shard: shard.first)

    def whole_batches(self, first: int, end: int) -> tuple[int, int]:
        """The range of whole batches that holds the indices first..end−1."""
        size = self.batch_size
        return first // size * size, -(-end // size) * size

    def calls(self, shard: Shard) -> int:
        """How many batches a shard takes."""
        first, end = self.whole_batches(shard.first, shard.end)
        return (end - first) // self.batch_size


def choose_sizes(
    usual_batch: int, shard_size: int | None, batch_size: int | None, smallest_batch: int = 1
) -> tuple[int, int]:
    """The sizes of a shard and of a batch, such that a shard is of whole batches where one of them is free.

    Args:
        usual_batch: samples of a network call where nothing is said.
        shard_size, batch_size: that were asked for; None to choose.
        smallest_batch: of the engine; a smaller shard leaves places of its batch idle.
    """
    if shard_size is None:
        batch = batch_size or usual_batch
        return batch * max(1, round(USUAL_SHARD_SIZE / batch)), batch
    if batch_size is None and shard_size <= usual_batch:
        batch_size = max(shard_size, smallest_batch)
    elif batch_size is None:
        fitting = range(usual_batch, max((usual_batch - 1) // 2, smallest_batch - 1), -1)
        batch_size = next((size for size in fitting if shard_size % size == 0), usual_batch)
    return shard_size, batch_size
