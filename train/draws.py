"""Every random choice of training as a function of what it is for, not of what was drawn before.

Image number p of a run (counted over steps and processes) has its own generator, so a run gives the same
numbers whether it was interrupted or not, and on any number of processes or threads.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

# The second word of the generator's key: what the numbers are for.
_ORDER, _IMAGE, _SAMPLING = 0, 1, 2


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
