"""One chain: N slots, each with a sample on its way through a table of rows, on the host or on a GPU."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

import numpy as np

from diffusion.errors import InputError
from diffusion.number_checks import shown, whole_number
from diffusion.philox import MAX_SEED
from diffusion.step_table import StepTable
from runtime.engines.interface import Engine
from runtime.formats.run_manifest import NonFiniteSample


class Chain(abc.ABC):
    """A batch of samples on its way through a table.

    Each sample has its own seed, sample index and row, so the samples of one batch may stand at different steps. A
    sample past its last row, or with row −1, is idle: the network is called on it, its state is left untouched.

    Samples begin in all slots at once, or in some of them while the others go on:

        chain.begin(seeds, sample_indices)                   # slots 0..n−1; the others are idle
        chain.enqueue(rows), chain.wait()                    # every sample goes on by so many rows
        chain.begin([seed], [sample_index], slots=[3])       # a new sample in slot 3

    Several tables may stand in the chain's rows one after the other, see `write_rows`: a sample then begins at the
    first row of its own table, and the caller makes it idle after the last.

    Args:
        engine: the network.
        table: the rows.
        batch_size: N, fixed.

    Attributes:
        batch_size: N.
        rows_left: of the sample that has the most of them, not counting what is enqueued.

    Raises:
        InputError: the engine was opened before this process was forked.
    """

    def __init__(self, engine: Engine, table: StepTable, batch_size: int) -> None:
        engine.check_process()
        self.batch_size = batch_size
        self.rows_left = 0
        self._shape = (batch_size, *engine.process.sample.chw)
        self._timesteps = table.timesteps.astype(np.int32)
        self._conditions = engine.process.conditions

    def begin(
        self,
        seeds: Sequence[int],
        sample_indices: Sequence[int],
        x_init: np.ndarray | None = None,
        slots: Sequence[int] | None = None,
        conditions: Sequence[np.ndarray] = (),
        first_rows: Sequence[int] | None = None,
    ) -> None:
        """Put n new samples into slots, at the first row of the table, or at a row of their own.

        A sample begins with x_T ~ N(0, I) by its seed and index, or with a given state.

        Args:
            seeds, sample_indices: n each, 0..2⁶⁴−1.
            x_init: float32 [n, C, H, W] to begin from instead of noise.
            slots: n different ones, while the samples of the others go on; None for the first n, and the others become
                idle.
            conditions: [n, …] for each condition of the process, in its order and of its type; they stay.
            first_rows: n rows to begin at; None for row 0.

        Raises:
            InputError: more samples than slots, no such slot or row, a state of another shape, or other conditions.
        """
        num = len(seeds)
        if not 0 < num <= self.batch_size:
            raise InputError(f"{num} samples were given to a chain of {self.batch_size}; expected 1 to that many")
        if x_init is not None and x_init.shape != (num, *self._shape[1:]):
            raise InputError(f"initial states have shape {x_init.shape}, expected {(num, *self._shape[1:])}")
        places = np.arange(num) if slots is None else np.array(slots, dtype=np.int64)
        if slots is not None and not (len(places) == num == len(np.intersect1d(places, np.arange(self.batch_size)))):
            raise InputError(f"slots are {list(slots)}, expected {num} different ones, 0 to {self.batch_size - 1}")
        rows = np.zeros(num, np.int64) if first_rows is None else np.array(first_rows, dtype=np.int64)
        if len(rows) != num or rows.min() < 0 or rows.max() >= len(self._timesteps):
            raise InputError(f"first rows are {first_rows}, expected {num} of them, 0 to {len(self._timesteps) - 1}")
        self._check_conditions(conditions, num)
        control = self._control(current=slots is not None)
        if slots is None:
            self.rows_left = 0
            for values in control.values():
                values[:] = 0
            control["row"][:] = -1
            control["t"][:] = self._timesteps[0]
        # Named, because NumPy makes float64 of a list with integers on both sides of 2⁶³.
        control["seed"][places] = np.array(seeds, dtype=np.uint64)
        control["sample_index"][places] = np.array(sample_indices, dtype=np.uint64)
        control["row"][places] = rows
        control["flag"][places] = 0
        control["t"][places] = self._timesteps[rows]
        self._upload()
        self._fill(places, x_init, others_idle=slots is None)
        self._condition(places, conditions, others_idle=slots is None)
        self.rows_left = max(self.rows_left, len(self._timesteps) - int(rows.min()))

    def write_rows(self, first: int, table: StepTable) -> None:
        """Put the rows of another table in the place of some of the chain's, while none of them is enqueued.

        The chain's own table says how its rows are applied: the clip, the histories, whether the variance is learned.
        That they apply to this table too is for the caller to see to (`runtime.serve.table_rows`).

        Args:
            first: row of the chain that becomes row 0 of the table.
            table: the rows.

        Raises:
            InputError: they do not fit.
        """
        last = first + len(table)
        if not 0 <= first < last <= len(self._timesteps):
            raise InputError(f"{len(table)} rows at {first} do not fit into the {len(self._timesteps)} of the chain")
        self._timesteps[first:last] = table.timesteps
        self._write_rows(first, table.cast())

    def _check_conditions(self, conditions: Sequence[np.ndarray], num: int) -> None:
        if len(conditions) != len(self._conditions):
            names = ", ".join(each.name for each in self._conditions) or "none"
            raise InputError(f"{len(conditions)} conditions were given to a chain whose network takes {names}")
        for of, values in zip(self._conditions, conditions, strict=True):
            if values.shape != (num, *of.shape) or values.dtype != of.type:
                raise InputError(
                    f"condition {of.name} is {values.dtype} {list(values.shape)} for {num} samples, expected {of.type} "
                    f"{[num, *of.shape]}"
                )
            # Engines on a GPU would read past a table of labels.
            if of.is_label and not ((values >= 0) & (values < of.num_labels)).all():
                raise InputError(f"condition {of.name} holds {values.tolist()}, expected 0 to {of.num_labels - 1}")

    @abc.abstractmethod
    def enqueue(self, num_rows: int) -> None:
        """Run so many rows, one network call each; on a GPU, put them on the stream and return.

        Raises:
            RuntimeError: CUDA, or the engine, refused.
        """

    @abc.abstractmethod
    def wait(self) -> None:
        """Wait for the rows that were enqueued.

        Raises:
            RuntimeError: one of them failed, with CUDA's text.
        """

    def step(self) -> None:
        """One network call and one row for every sample that has one left; done when this returns."""
        self.enqueue(1)
        self.wait()

    def run(self, after_step: Callable[[], None] | None = None) -> None:
        """Run every sample to its end; `after_step` is called for each step, once its chunk is done."""
        while self.rows_left:
            chunk = self.next_chunk()
            self.enqueue(chunk)
            self.wait()
            if after_step is not None:
                for _ in range(chunk):
                    after_step()

    @abc.abstractmethod
    def next_chunk(self) -> int:
        """How many rows to run before progress is shown and Ctrl-C is answered; at most `rows_left`."""

    @property
    @abc.abstractmethod
    def x(self) -> np.ndarray:
        """The states, float32 [N, C, H, W]: on the host the buffer itself, which the next row changes; else a copy."""

    @property
    @abc.abstractmethod
    def x_start(self) -> np.ndarray | None:
        """What the last row predicted x_0 to be, given as `x` is; None if it is not kept."""

    @property
    def row(self) -> np.ndarray:
        """The row that each sample runs next, a copy: int32 [N]. May be set: −1 makes a sample idle."""
        return self._control()["row"].copy()

    @row.setter
    def row(self, rows: np.ndarray) -> None:
        control = self._control()
        control["row"][:] = rows
        named = np.flatnonzero((control["row"] >= 0) & (control["row"] < len(self._timesteps)))
        control["t"][named] = self._timesteps[control["row"][named]]
        self._upload()
        self.rows_left = int((len(self._timesteps) - control["row"][named]).max(initial=0))

    def finite(self) -> np.ndarray:
        """bool [N]: which samples may be used."""
        return np.asarray(self._control()["flag"] == 0)

    def broken_rows(self) -> np.ndarray:
        """int32 [N]: the row in which each sample broke; −1 where it did not."""
        return np.asarray(self._control()["flag"] - 1)

    def non_finite(self) -> list[NonFiniteSample]:
        """The samples that broke, in the order of their slots."""
        control = self._control()
        slots = np.flatnonzero(control["flag"])
        rows = control["flag"][slots] - 1
        return [
            NonFiniteSample(int(control["sample_index"][slot]), int(row), int(self._timesteps[row]))
            for slot, row in zip(slots, rows, strict=True)
        ]

    @property
    @abc.abstractmethod
    def buffer_bytes(self) -> int:
        """Memory of the chain's own buffers."""

    @abc.abstractmethod
    def close(self) -> None:
        """Wait for what is running, and give back what the chain holds beside memory of the host."""

    @abc.abstractmethod
    def _control(self, current: bool = True) -> dict[str, np.ndarray]:
        """What is kept of each slot, [N] each, on the host: `seed`, `sample_index`, `row`, `t`, and `flag`, the row in
        which its sample broke plus 1; whatever was there before unless it shall be current."""

    @abc.abstractmethod
    def _upload(self) -> None:
        """Let the chain see what was written into `_control`."""

    @abc.abstractmethod
    def _write_rows(self, first: int, coefficients: np.ndarray) -> None:
        """Let the chain see rows of coefficients, float32 [R, 13], and what `_timesteps` has there."""

    @abc.abstractmethod
    def _fill(self, slots: np.ndarray, x_init: np.ndarray | None, *, others_idle: bool) -> None:
        """Write the states that the samples of these slots begin with, and empty histories."""

    @abc.abstractmethod
    def _condition(self, slots: np.ndarray, conditions: Sequence[np.ndarray], *, others_idle: bool) -> None:
        """Write the conditions of the samples of these slots; zeros, which any network takes, into idle ones."""


def check_seed_range(seed: int, start: int, num: int) -> tuple[int, int, int]:
    """The three as Python's integers, which do not overflow.

    Raises:
        InputError: unless all are whole, 0 ≤ seed < 2⁶⁴, num ≥ 1 and every start..start+num−1 fits 64 bits.
    """
    seed, start, num = (whole_number(value, name) for name, value in (("seed", seed), ("start", start), ("num", num)))
    if not 0 <= seed < MAX_SEED:
        raise InputError(f"seed is {shown(seed)}, expected 0 to 2^64 - 1")
    if num < 1:
        raise InputError(f"num is {shown(num)}, expected at least 1")
    if num > MAX_SEED:
        raise InputError(f"num is {shown(num)}, expected at most 2^64")
    if not 0 <= start <= MAX_SEED - num:
        raise InputError(f"start is {shown(start)}, expected 0 to 2^64 - {num}, so that start + num fits 64 bits")
    return seed, start, num
