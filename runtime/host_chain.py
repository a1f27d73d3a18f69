"""The chain on the host: network call, then the compiled step, in place, no allocation per step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diffusion.errors import InputError
from diffusion.normal import draw_number
from diffusion.number_checks import shown, whole_number
from diffusion.philox import MAX_SEED
from diffusion.step_table import StepTable
from runtime.engines.interface import Engine
from runtime.formats.run_manifest import NonFiniteSample
from runtime.kernels_module import import_kernels


class HostChain:
    """A batch of samples on its way through a table.

    Each sample has its own seed, sample index and row, so samples of one batch may stand at different
    steps; a sample past its last row, or with row −1, is idle and left untouched.

    Args:
        engine: the network.
        table: the rows.
        batch_size: N.
        with_x_start: whether `x_start` holds the prediction of x_0 after every step.
        threads: of the step; 0 for as many as this process may use.

    Attributes:
        x: float32 [N, C, H, W], the state, updated in place.
        x_start: float32 [N, C, H, W] or None.
        row: int32 [N], the row that each sample runs next.

    Raises:
        InputError: a batch that the engine does not take.
    """

    def __init__(
        self, engine: Engine, table: StepTable, batch_size: int, with_x_start: bool = False, threads: int = 0
    ) -> None:
        process = engine.process
        shape = (batch_size, *process.sample.chw)
        self._table = table
        self._timesteps = table.timesteps.astype(np.int32)
        self.x = np.zeros(shape, dtype=np.float32)
        self.x_start = np.zeros(shape, dtype=np.float32) if with_x_start else None
        self.row = np.full(batch_size, -1, dtype=np.int32)
        self._prediction = np.zeros((batch_size, process.prediction_channels, *shape[2:]), dtype=np.float32)
        self._histories = [np.zeros(shape, dtype=np.float32) for _ in range(table.histories)]
        self._t = np.zeros(batch_size, dtype=np.float32)
        self._seed = np.zeros(batch_size, dtype=np.uint64)
        self._sample_index = np.zeros(batch_size, dtype=np.uint64)
        self._flag = np.zeros(batch_size, dtype=np.int32)
        self._threads = threads
        self._call: Callable[[], None] = engine.bind(self.x, self._t, self._prediction)
        histories = dict(zip(("h1", "h2"), self._histories, strict=False))
        step = import_kernels().HostStep(
            table.cast(),
            self._timesteps,
            histories=table.histories,
            learned=table.learned,
            h2_is_x_start=table.h2_is_x_start,
            clip=table.clip,
            x=self.x,
            prediction=self._prediction,
            t=self._t,
            row=self.row,
            seed=self._seed,
            sample_index=self._sample_index,
            flag=self._flag,
            x_start=self.x_start,
            threads=threads,
            **histories,
        )
        self._step: Callable[[], None] = step.run

    def begin(self, seeds: Sequence[int], sample_indices: Sequence[int], x_init: np.ndarray | None = None) -> None:
        """Put a new sample into each of the first n ≤ N slots, at row 0; the other slots are idle.

        A sample begins with x_T ~ N(0, I) by its seed and index, or with a given state. An idle slot holds zeros.

        Args:
            seeds, sample_indices: n each, 0..2⁶⁴−1.
            x_init: float32 [n, C, H, W] to begin from instead of noise.

        Raises:
            InputError: more samples than slots, or a state of another shape.
        """
        num = len(seeds)
        if not 0 < num <= len(self.x):
            raise InputError(f"{num} samples were given to a chain of {len(self.x)}; expected 1 to that many")
        if x_init is not None and x_init.shape != (num, *self.x.shape[1:]):
            raise InputError(f"initial states have shape {x_init.shape}, expected {(num, *self.x.shape[1:])}")
        # Named, because NumPy makes float64 of a list with integers on both sides of 2⁶³.
        self._seed[:num] = np.array(seeds, dtype=np.uint64)
        self._sample_index[:num] = np.array(sample_indices, dtype=np.uint64)
        self.row[:num] = 0
        self.row[num:] = -1
        self._flag[:] = 0
        self._t[:] = self._timesteps[0]
        for history in self._histories:
            history[:] = 0.0
        # What the network reads in an idle slot is finite, and not the last run's.
        self.x[num:] = 0.0
        if x_init is None:
            import_kernels().normal(
                self.x[:num].reshape(num, -1),
                self._seed[:num],
                self._sample_index[:num],
                draw_number(None),
                threads=self._threads,
            )
        else:
            self.x[:num] = x_init

    def step(self) -> None:
        """One network call and one row for every sample that has one left."""
        self._call()
        self._step()

    def run(self, after_step: Callable[[], None] | None = None) -> None:
        """Run every sample to its end; `after_step` is called after each step."""
        rows = self.row[self.row >= 0]
        for _ in range(len(self._table) - int(rows.min(initial=len(self._table)))):
            self.step()
            if after_step is not None:
                after_step()

    def non_finite(self) -> list[NonFiniteSample]:
        """The samples that broke, in the order of their slots."""
        slots = np.flatnonzero(self._flag)
        rows = self._flag[slots] - 1
        return [
            NonFiniteSample(int(self._sample_index[slot]), int(row), int(self._timesteps[row]))
            for slot, row in zip(slots, rows, strict=True)
        ]

    def finite(self) -> np.ndarray:
        """bool [N]: which samples may be used."""
        return self._flag == 0

    @property
    def buffer_bytes(self) -> int:
        """Memory of the chain's own arrays, in bytes."""
        arrays = [self.x, self._prediction, *self._histories]
        return sum(array.nbytes for array in arrays) + (0 if self.x_start is None else self.x_start.nbytes)


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
