"""Batches of Algorithm 1's inputs: every random choice is a function of what it is for, not of what was drawn before.

Image number p of a run (counted over steps and processes) has its own generator, so a run gives the same
numbers whether it was interrupted or not, and on any number of processes or threads.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from diffusion.errors import InputError
from train.image_set import ImageSet

# The second word of the generator's key: what the numbers are for.
_ORDER, _IMAGE, _SAMPLING, _DROP = 0, 1, 2, 3


@dataclass(frozen=True)
class ImageDraws:
    """What Algorithm 1 draws for one image (Ho et al. 2020), and whether the image is flipped.

    Attributes:
        timestep: uniform in 0 … T−1.
        flip: left and right exchanged.
        eps: float32 [C, H, W], standard normal.
    """

    timestep: int
    flip: bool
    eps: np.ndarray


class Draws:
    """The random choices that belong to one seed. Not for use by several threads at once: make one for each."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._philox = np.random.Philox(key=0)
        self._state = self._philox.state
        self._generator = np.random.Generator(self._philox)
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def image_index(self, position: int, num_images: int) -> int:
        """Which image stands at `position`: every epoch goes through all images in an order of its own."""
        epoch, place = divmod(position, num_images)
        order = self._orders.get((epoch, num_images))
        if order is None:
            self._orders.clear()  # the epochs before are over
            order = self._orders[epoch, num_images] = self._at(_ORDER, epoch).permutation(num_images)
        return int(order[place])

    def image(self, position: int, num_train_timesteps: int, chw: tuple[int, int, int]) -> ImageDraws:
        """The timestep, flip and noise of the image at `position`."""
        generator = self._at(_IMAGE, position)
        timestep = int(generator.integers(num_train_timesteps))
        flip = bool(generator.random() < 0.5)
        return ImageDraws(timestep, flip, generator.standard_normal(chw, dtype=np.float32))

    def class_is_dropped(self, position: int, probability: float) -> bool:
        """Whether the image at `position` is shown without its class."""
        return probability > 0.0 and bool(self._at(_DROP, position).random() < probability)

    def sampling_noise(self, draw: int, shape: tuple[int, ...]) -> np.ndarray:
        """Noise for the sample grid, float32 of `shape`: draw 0 is x_T, draw t + 1 the noise at timestep t."""
        return self._at(_SAMPLING, draw).standard_normal(shape, dtype=np.float32)

    def torch_seed(self, step: int, process_index: int) -> int:
        """A seed for what torch draws itself: initialization (step −1) and dropout."""
        digest = hashlib.sha256(f"{self._seed} {step} {process_index}".encode()).digest()
        return int.from_bytes(digest[:8], "little")

    def _at(self, purpose: int, position: int) -> np.random.Generator:
        # Setting the counter takes a quarter of the time that a new generator takes.
        self._state["state"]["key"][:] = self._seed, purpose
        self._state["state"]["counter"][:] = 0, 0, position, 0
        self._state["buffer_pos"], self._state["has_uint32"] = 4, 0
        self._philox.state = self._state
        return self._generator


@dataclass(frozen=True)
class Batch:
    """Inputs of the objective.

    Attributes:
        x_start: float32 [N, C, H, W] in [−1, 1].
        timesteps: int64 [N], 0 … T−1.
        eps: float32 [N, C, H, W], standard normal.
        labels: int64 [N], classes, the null class where it was dropped; None where the images have none.
    """

    x_start: np.ndarray
    timesteps: np.ndarray
    eps: np.ndarray
    labels: np.ndarray | None = None


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
        drop_class: the probability that an image's class is replaced by the null class (Ho & Salimans 2022, p_uncond).

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
        drop_class: float = 0.0,
    ) -> None:
        if batch_size % num_processes:
            raise InputError(
                f"--batch-size is {batch_size}, expected a multiple of the {num_processes} processes "
                "(it counts all images of a step)"
            )
        self._images, self._batch_size, self._num_train_timesteps = images, batch_size, num_train_timesteps
        self._seed, self._flips, self._drop_class = seed, flips, drop_class
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
            labels=self._labels(draws, positions, indices),
        )

    def _labels(self, draws: Draws, positions: range, indices: list[int]) -> np.ndarray | None:
        labels = self._images.labels
        if labels is None:
            return None
        dropped = [draws.class_is_dropped(position, self._drop_class) for position in positions]
        return np.where(dropped, len(labels.names), labels.of_image[indices])

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
