"""Several tables in the rows of one chain, one after the other: which one lies where, and which can lie together."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from diffusion.errors import InputError
from diffusion.process import Process
from diffusion.step_table import COLUMNS, StepTable
from runtime.chain.interface import Chain

# A chain applies all of its rows in one way. With two histories it runs the tables with fewer, whose coefficients are 0
# there, and with a learned variance those without one, as exp(0·w) = 1: the same numbers, but for the sign of a zero.
_HISTORIES = 2
_MAX_ROWS = (1 << 20) - 2  # of any chain: the noise of a row is numbered by its timestep in 20 bits


@dataclass(frozen=True)
class RowKind:
    """How a chain applies its rows, where tables can differ in it: those of two kinds are not in one batch.

    Attributes:
        clip: bound for |x_start|.
        h2_is_x_start: what the second history is.
    """

    clip: float
    h2_is_x_start: bool

    @classmethod
    def of(cls, table: StepTable) -> RowKind:
        """The kind that a table needs, or would choose."""
        return cls(table.clip, table.h2_is_x_start)

    def runs(self, table: StepTable) -> bool:
        """Whether a chain of this kind gives the samples of a table."""
        free = table.histories < _HISTORIES
        return table.clip == self.clip and (free or table.h2_is_x_start == self.h2_is_x_start)


def empty_table(process: Process, kind: RowKind, num_rows: int) -> StepTable:
    """What a chain is made with whose rows are written later.

    Its timesteps go beyond those of training where it is longer: `TableRows` replaces them, since the network reads
    some of them in idle slots.
    """
    timesteps = np.arange(num_rows)[::-1]
    return StepTable(
        "slots",
        timesteps,
        np.zeros((num_rows, len(COLUMNS))),
        clip=kind.clip,
        histories=_HISTORIES,
        learned=process.variance_type == "learned_range",
        h2_is_x_start=kind.h2_is_x_start,
    )


def rows_for(process: Process, num_slots: int) -> int:
    """Rows of a chain in which every slot can have a table of its own, of all timesteps, with room for one more."""
    return min((num_slots + 1) * process.schedule.num_train_timesteps, _MAX_ROWS)


@dataclass(frozen=True)
class _Placed:
    table: StepTable
    first: int
    users: int  # samples in slots
    last_used: int

    @property
    def end(self) -> int:
        return self.first + len(self.table)


class TableRows:
    """The rows of one chain. A table stays until its room is needed and no sample runs it.

    Args:
        chain: made with `empty_table`.
        process: of the network.
        kind: of the chain.
        num_rows: of it.
    """

    def __init__(self, chain: Chain, process: Process, kind: RowKind, num_rows: int) -> None:
        self._chain, self._num_rows = chain, num_rows
        total = process.schedule.num_train_timesteps
        for first in range(0, num_rows, total):
            chain.write_rows(first, empty_table(process, kind, min(total, num_rows - first)))
        self._placed: dict[int, _Placed] = {}  # by the table's identity, which `_Placed` keeps alive
        self._ticks = itertools.count()

    def take(self, table: StepTable) -> int | None:
        """The first row of a table, for one more sample; None if there is no room until other samples are done.

        Raises:
            InputError: a table that is longer than all rows.
        """
        if len(table) > self._num_rows:
            raise InputError(f"table of {table.sampler} has {len(table)} rows, expected at most {self._num_rows}")
        placed = self._placed.get(id(table))
        if placed is None:
            first = self._room(len(table))
            if first is None:
                return None
            self._chain.write_rows(first, table)
            placed = _Placed(table, first, 0, 0)
        self._placed[id(table)] = replace(placed, users=placed.users + 1, last_used=next(self._ticks))
        return placed.first

    def give_back(self, table: StepTable) -> None:
        """A sample that ran it is done."""
        placed = self._placed[id(table)]
        self._placed[id(table)] = replace(placed, users=placed.users - 1)

    def _room(self, length: int) -> int | None:
        """The first gap of a length, made by forgetting what was used longest ago."""
        while True:
            end = 0
            for placed in sorted(self._placed.values(), key=lambda each: each.first):
                if placed.first - end >= length:
                    return end
                end = placed.end
            if self._num_rows - end >= length:
                return end
            unused = [key for key, placed in self._placed.items() if not placed.users]
            if not unused:
                return None
            del self._placed[min(unused, key=lambda key: self._placed[key].last_used)]
