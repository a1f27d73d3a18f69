"""The chain on the host: network call, then the compiled step, in place, no allocation per step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diffusion.normal import draw_number
from diffusion.step_table import StepTable
from runtime.chain.interface import Chain
from runtime.conditions import neutral_conditions
from runtime.engines.interface import Engine
from runtime.kernels_module import import_kernels


class HostChain(Chain):
    """A `Chain` in the host's memory.

    Args:
        engine: the network.
        table: the rows.
        batch_size: N.
        with_x_start: whether `x_start` holds the prediction of x_0 after every step.
        threads: of the step; 0 for as many as this process may use.

    Raises:
        InputError: a batch that the engine does not take.
    """

    def __init__(
        self, engine: Engine, table: StepTable, batch_size: int, with_x_start: bool = False, threads: int = 0
    ) -> None:
        super().__init__(engine, table, batch_size)
        shape, channels = self._shape, engine.process.prediction_channels
        self._x = np.zeros(shape, dtype=np.float32)
        self._x_start = np.zeros(shape, dtype=np.float32) if with_x_start else None
        self._prediction = np.zeros((batch_size, channels, *shape[2:]), dtype=np.float32)
        self._histories = [np.zeros(shape, dtype=np.float32) for _ in range(table.histories)]
        self._slots: dict[str, np.ndarray] = {
            "t": np.zeros(batch_size, dtype=np.float32),
            "row": np.full(batch_size, -1, dtype=np.int32),
            "seed": np.zeros(batch_size, dtype=np.uint64),
            "sample_index": np.zeros(batch_size, dtype=np.uint64),
            "flag": np.zeros(batch_size, dtype=np.int32),
        }
        self._threads = threads
        self._given = neutral_conditions(self._conditions, batch_size)
        self._call: Callable[[], None] = engine.bind(self._x, self._slots["t"], self._prediction, self._given)
        self._coefficients = table.cast()
        step = import_kernels().HostStep(
            self._coefficients,
            self._timesteps,
            histories=table.histories,
            learned=table.learned,
            h2_is_x_start=table.h2_is_x_start,
            clip=table.clip,
            x=self._x,
            prediction=self._prediction,
            x_start=self._x_start,
            threads=threads,
            **self._slots,
            **dict(zip(("h1", "h2"), self._histories, strict=False)),
        )
        self._step: Callable[[], None] = step.run

    def next_chunk(self) -> int:
        """One row: the next one would not be done sooner with it."""
        return min(1, self.rows_left)

    def enqueue(self, num_rows: int) -> None:
        """Run so many rows; they are done when this returns."""
        for _ in range(num_rows):
            self._call()
            self._step()
        self.rows_left = max(0, self.rows_left - num_rows)

    def wait(self) -> None:
        """Nothing is left to wait for."""

    @property
    def x(self) -> np.ndarray:
        """The states, float32 [N, C, H, W], updated in place."""
        return self._x

    @property
    def x_start(self) -> np.ndarray | None:
        """What the last row predicted x_0 to be, float32 [N, C, H, W], updated in place; None if it is not kept."""
        return self._x_start

    @property
    def buffer_bytes(self) -> int:
        """Memory of the states, the prediction, the histories, the conditions and x_start."""
        arrays = [self._x, self._prediction, *self._histories, *self._given]
        return sum(array.nbytes for array in arrays) + (0 if self._x_start is None else self._x_start.nbytes)

    def close(self) -> None:
        """Nothing else is held."""

    def _control(self, current: bool = True) -> dict[str, np.ndarray]:
        return self._slots

    def _upload(self) -> None:
        """The step reads the arrays themselves."""

    def _write_rows(self, first: int, coefficients: np.ndarray) -> None:
        self._coefficients[first : first + len(coefficients)] = coefficients  # the step reads the array itself

    def _fill(self, slots: np.ndarray, x_init: np.ndarray | None, *, others_idle: bool) -> None:
        if others_idle:  # what the network reads in an idle slot is finite, and not the last run's
            for array in (self._x, *self._histories):
                array[:] = 0.0
        if x_init is None:
            x_init = np.empty((len(slots), *self._shape[1:]), dtype=np.float32)
            import_kernels().normal(
                x_init.reshape(len(slots), -1),
                self._slots["seed"][slots],
                self._slots["sample_index"][slots],
                draw_number(None),
                threads=self._threads,
            )
        self._x[slots] = x_init
        for history in self._histories:
            history[slots] = 0.0

    def _condition(self, slots: np.ndarray, conditions: Sequence[np.ndarray], *, others_idle: bool) -> None:
        for own, values in zip(self._given, conditions, strict=True):
            if others_idle:
                own[:] = 0
            own[slots] = values
