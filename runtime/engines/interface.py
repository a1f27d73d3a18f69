"""What a backend must offer to be run by the host chain."""

from __future__ import annotations

import abc
import os
from collections.abc import Callable
from typing import Self

import numpy as np

from diffusion.errors import InputError
from diffusion.process import Process


class Engine(abc.ABC):
    """An ε-network ready to run: the process it belongs to, and calls bound to buffers. The base of every backend's.

    What most engines have in common is defined here: any batch, any timesteps, no padding, no reason to give.
    """

    name: str
    """For messages and reports, such as `ONNX Runtime 1.20 (CPU)`."""

    process: Process
    """What the network was trained to do."""

    sha256: str
    """Of every byte that the network is made of, in however many files: a run's identity."""

    precision: str
    """Of the network's arithmetic: `fp32`, `fp16`, `bf16` or `int8`. Tables are checked against it."""

    shares_timestep: bool = False
    """Whether all samples of a call must be at one timestep."""

    chosen_because: str = ""
    """Why this backend runs the file; empty where the user said so, or where there is no other."""

    _process_id: int

    def __new__(cls, *arguments: object, **options: object) -> Self:
        """Note the process that opens the engine; here, so that no backend can forget it."""
        engine = super().__new__(cls)
        engine._process_id = os.getpid()
        return engine

    def check_process(self) -> None:
        """Refuse an engine that was opened before this process was forked.

        Backends keep pools of threads (ONNX Runtime, OpenVINO, OpenMP) or a context of the driver (CUDA). A forked
        child has their memory but not their threads, and its first call would wait for them for ever.

        Raises:
            InputError: it was opened in another process.
        """
        if os.getpid() != self._process_id:
            raise InputError(
                f"{self.name} was opened in process {self._process_id} and is used in its fork {os.getpid()}, "
                "which has none of its threads; open it in each process, or start them by multiprocessing's 'spawn'"
            )

    def batch_range(self) -> tuple[int, int | None]:
        """The smallest and the largest batch that it takes; None where only memory limits it."""
        return 1, None

    @property
    def fixed_batch(self) -> int | None:
        """The batch that the file fixes: every call takes so many samples; None where there are several."""
        smallest, largest = self.batch_range()
        return smallest if smallest == largest else None

    def padded_batch(self, num: int) -> int:
        """The size that `num` samples are called in; larger where the backend compiles for each of few sizes."""
        return num

    @abc.abstractmethod
    def bind(self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray) -> Callable[[], None]:
        """A call that reads `x` and `t` and writes `prediction`, in place and every time the same buffers.

        Args:
            x: float32 [N, C, H, W], C-contiguous.
            t: float32 [N], the network's own conditioning, integers 0..T−1.
            prediction: float32 [N, C or 2C, H, W], C-contiguous, written.

        The call that is returned keeps the buffers alive. One engine may be bound several times.

        Raises:
            InputError: the network does not take this batch size.
        """
