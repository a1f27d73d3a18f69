"""Batches of Algorithm 1's inputs: each process makes its own rows of the batch that all share."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from diffusion.errors import InputError
from train.draws import Draws
from train.image_set import ImageSet


@dataclass(frozen=True)
class Batch:
    """Inputs of the objective.

    Attributes:
        x_start: float32 [N, C, H, W] in [−1, 1].
        timesteps: int64 [N], 0 … T−1.
        eps: float32 [N, C, H, W], standard normal.
    """

    x_start: np.ndarray
    timesteps: np.ndarray
    eps: np.ndarray


class Batches:
    """The batches of a run; batch k is the same whenever and wherever it is made.

    Args:
        images: to draw from.
        batch_size: over all processes.
        num_train_timesteps: T.
        seed: of the run.
        flips: random horizontal flips.
        num_processes, process_index: this process makes rows process_index · b to (process_index + 1) · b,
            b = batch_size / num_processes.

    Attributes:
        num_rows: b.

    Raises:
        InputError: `batch_size` is not a multiple of `num_processes`.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        num_train_timesteps: int,
        seed: int,
        flips: bool = False,
        num_processes: int = 1,
        process_index: int = 0,
    ) -> None:
        if batch_size % num_processes:
            raise InputError(
                f"--batch-size is {batch_size}, expected a multiple of the {num_processes} processes "
                "(it counts all images of a step)"
            )
        self._images, self._batch_size, self._num_train_timesteps = images, batch_size, num_train_timesteps
        self._seed, self._flips = seed, flips
        self.num_rows = batch_size // num_processes
        self._first_row = process_index * self.num_rows
        self._of_thread = threading.local()

    def batch(self, step: int) -> Batch:
        """This process's rows of the batch of update `step`, counted from 0."""
        draws = self._draws()
        first = step * self._batch_size + self._first_row
        positions = range(first, first + self.num_rows)
        indices = [draws.image_index(position, self._images.num_images) for position in positions]
        drawn = [draws.image(position, self._num_train_timesteps, self._images.shape.chw) for position in positions]
        return Batch(
            x_start=self._images.x_start(indices, [one.flip for one in drawn] if self._flips else None),
            timesteps=np.array([one.timestep for one in drawn], dtype=np.int64),
            eps=np.stack([one.eps for one in drawn]),
        )

    def iterate(self, start: int, stop: int, num_workers: int = 0) -> Iterator[Batch]:
        """The batches of updates start … stop − 1, prepared ahead by `num_workers` threads."""
        if num_workers == 0:
            yield from map(self.batch, range(start, stop))
            return
        with ThreadPoolExecutor(num_workers, thread_name_prefix="batch") as pool:
            ahead: deque[Future[Batch]] = deque()
            try:
                for step in range(start, stop):
                    ahead.append(pool.submit(self.batch, step))
                    if len(ahead) > num_workers:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _draws(self) -> Draws:
        if not hasattr(self._of_thread, "draws"):
            self._of_thread.draws = Draws(self._seed)
        draws: Draws = self._of_thread.draws
        return draws
