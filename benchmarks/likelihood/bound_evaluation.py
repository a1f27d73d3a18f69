"""Terms of the bound through engines: one batch of x_t, made once, goes to every engine that is compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.likelihood.timestep_plan import Evaluations
from commands.errors import VerificationError
from commands.system import check_memory
from diffusion.bound import bound_term
from diffusion.errors import InputError
from diffusion.gaussian import q_sample
from diffusion.normal import LIKELIHOOD, draw_number
from diffusion.process import Process
from runtime.engines.interface import Engine
from runtime.kernels_module import import_kernels


class BoundEvaluator:
    """Engines bound once at one batch size, and the images.

    Args:
        engines: one or more, of one sample shape and one noise schedule.
        x_start: float32 [N, C, H, W].
        batch_size: of every network call; the last one is filled up and the filling dropped.
        seed: of the noise; image i has the sample index i.
        processes: of the engines where they are to be taken for others: other gray levels; None for their own.

    Raises:
        InputError: engines that cannot share x_t, or a batch that one of them does not take.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        x_start: np.ndarray,
        batch_size: int,
        seed: int,
        processes: Sequence[Process] | None = None,
    ) -> None:
        self._processes = [engine.process for engine in engines] if processes is None else list(processes)
        for other in self._processes[1:]:
            _check_comparable(self._processes[0], other)
        self.engines = tuple(engines)
        self._x_start = x_start
        shape = (batch_size, *x_start.shape[1:])
        held = (6 + 2 * len(engines)) * 4 * math.prod(shape)  # a lower bound: the networks need more
        check_memory(f"--batch-size {batch_size}", held, "give a smaller one")
        self._eps = np.zeros(shape, np.float32)
        self._x_t = np.zeros(shape, np.float32)
        self._t = np.zeros(batch_size, np.float32)
        self._seed = np.full(batch_size, seed, np.uint64)
        self._predictions = [
            np.zeros((batch_size, engine.process.prediction_channels, *shape[2:]), np.float32) for engine in engines
        ]
        self._calls = [
            engine.bind(self._x_t, self._t, prediction)
            for engine, prediction in zip(engines, self._predictions, strict=True)
        ]

    def warm_up(self) -> None:
        """Call every network once: the first call is slower than the others."""
        for call in self._calls:
            call()

    def nats(self, evaluations: Evaluations, advance: Callable[[int], object] = lambda num: None) -> np.ndarray:
        """The terms of `diffusion.bound.bound_term`, float64 [engines, M].

        Args:
            evaluations: what to evaluate.
            advance: told after every batch how many are done.

        Raises:
            VerificationError: a prediction is not finite.
        """
        total, batch_size = len(evaluations.image), len(self._t)
        nats = np.empty((len(self.engines), total))
        for first in range(0, total, batch_size):
            some = slice(first, min(first + batch_size, total))
            nats[:, some] = self._batch(*(values[some] for values in evaluations))
            advance(some.stop - first)
        return nats

    def _batch(self, image: np.ndarray, timestep: np.ndarray, repeat: np.ndarray) -> np.ndarray:
        num = len(image)
        draws = [draw_number(int(t), LIKELIHOOD, int(r)) for t, r in zip(timestep, repeat, strict=True)]
        import_kernels().normal(
            self._eps[:num], self._seed[:num], image.astype(np.uint64), np.array(draws, dtype=np.uint32)
        )
        x_start = self._x_start[image].astype(np.float64)
        schedule = self.engines[0].process.schedule
        # Rounded to float32: the term is that of the x_t which the network sees.
        self._x_t[:num] = q_sample(schedule, x_start, timestep.reshape(-1, 1, 1, 1), self._eps[:num])
        self._t[:num] = timestep
        nats = np.empty((len(self.engines), num))
        for row, (engine, process, call, prediction) in enumerate(
            zip(self.engines, self._processes, self._calls, self._predictions, strict=True)
        ):
            call()
            finite = np.isfinite(prediction[:num]).reshape(num, -1).all(axis=1)
            if not finite.all():
                bad = int(np.argmin(finite))
                raise VerificationError(
                    f"{engine.name}: the prediction for image {image[bad]} at timestep {timestep[bad]} is not finite; "
                    "export with another precision"
                )
            nats[row] = bound_term(process, x_start, self._x_t[:num], timestep, prediction[:num])
        return nats


def _check_comparable(ours: Process, theirs: Process) -> None:
    if ours.sample != theirs.sample:
        raise InputError(f"--against: samples are {theirs.sample}, those of --engine {ours.sample}")
    if len(ours.schedule.betas) != len(theirs.schedule.betas) or not np.allclose(
        ours.schedule.betas, theirs.schedule.betas, rtol=1e-9, atol=0.0
    ):
        raise InputError("--against: has another noise schedule than --engine; compare exports of one network")
