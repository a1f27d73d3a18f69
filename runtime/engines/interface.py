"""What a backend must offer to be run by the host chain."""

from __future__ import annotations

import abc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from diffusion.errors import InputError
from diffusion.process import Process


class Engine(abc.ABC):
    """An ε-network ready to run: the process it belongs to, and calls bound to buffers. The base of every backend.

    A backend sets the attributes without a default and defines `_bind`. The defaults are those of most engines: any
    batch, any timesteps, no padding, no reason to give. What every call needs is checked here, in `bind`.
    """

    name: str
    """For messages and reports, such as `ONNX Runtime 1.20 (CPU)`."""

    process: Process
    """What the network was trained to do."""

    sha256: str
    """Of every byte that the network is made of, in however many files: a run's identity."""

    precision: str
    """Of the network's arithmetic: `fp32`, `fp16`, `bf16` or `int8`. Tables are checked against it."""

    path: Path | None = None
    """The file or folder that was opened, for messages; None for an engine that was made in memory."""

    shares_timestep: bool = False
    """Whether all samples of a call must be at one timestep."""

    chosen_because: str = ""
    """Why this backend runs the file; empty where the user said so, or where there is no other."""

    has_digest: bool = True
    """Whether its maker left a hash, with which the bytes of the network were compared."""

    _process_id: int

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember the process, here because a backend's `__init__` may forget it."""
        engine = super().__new__(cls)
        engine._process_id = os.getpid()
        return engine

    def check_process(self) -> None:
        """Refuse an engine that was opened before this process was forked.

        The libraries behind the engines keep pools of threads (ONNX Runtime, OpenVINO, OpenMP) or a context of the
        driver (CUDA). A forked child has their memory but not the threads, and its first call would never return.

        Raises:
            InputError: this is another process than the one that opened it.
        """
        if os.getpid() != self._process_id:
            raise InputError(
                f"{self.path or self.name} was opened in process {self._process_id} and is used in its fork "
                f"{os.getpid()}, which has none of its threads; open it in each process, or start them by "
                "multiprocessing's 'spawn'"
            )

    def digest_note(self) -> str | None:
        """What a user should know of a network whose bytes could be compared with nothing; None for any other."""
        if self.has_digest:
            return None
        return f"{self.path or self.name} has no digest: a changed byte is not noticed; its SHA-256 is {self.sha256}"

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

    def check_batch(self, batch_size: int) -> None:
        """Raises InputError for a batch outside `batch_range`."""
        smallest, largest = self.batch_range()
        fitting = max(smallest, batch_size if largest is None else min(batch_size, largest))
        if batch_size != fitting:
            taken = f"{smallest}" if smallest == largest else f"{smallest} to {largest or 'any'}"
            raise InputError(
                f"{self.path or self.name}: takes batches of {taken}, found {batch_size}; give `batch_size={fitting}`, "
                "or export with a dynamic first axis"
            )

    def bind(
        self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray, conditions: Sequence[np.ndarray] = ()
    ) -> Callable[[], None]:
        """A call that reads `x`, `t` and conditions and writes `prediction`, in place and always the same buffers.

        Args:
            x: float32 [N, C, H, W], C-contiguous.
            t: float32 [N], the network's own conditioning, integers 0..T−1.
            prediction: float32 [N, C or 2C, H, W], C-contiguous, written.
            conditions: [N, …], C-contiguous: one for each condition of the process, in its order and of its type.

        The call that is returned keeps the buffers alive. One engine may be bound several times.

        Raises:
            InputError: other buffers, a batch that the network does not take, or a process that was forked since the
                engine was opened.
        """
        self.check_process()
        num, sample = len(x), self.process.sample
        described = self.process.conditions
        if len(conditions) != len(described):
            names = ", ".join(each.name for each in described) or "no conditions"
            raise InputError(
                f"{self.path or self.name}: takes {names} and was given {len(conditions)} conditions; what does not "
                "ask for them needs an unconditional network"
            )
        predicted = (num, self.process.prediction_channels, sample.height, sample.width)
        for name, array, kind, shape in (
            ("x", x, "float32", (num, *sample.chw)),
            ("t", t, "float32", (num,)),
            ("prediction", prediction, "float32", predicted),
            *((of.name, each, of.type, (num, *of.shape)) for of, each in zip(described, conditions, strict=True)),
        ):
            if array.shape != shape or array.dtype != kind or not array.flags.c_contiguous:
                raise InputError(
                    f"{self.path or self.name}: {name} is {array.dtype} {array.shape}, expected {kind} {shape}, "
                    "C-contiguous"
                )
        self.check_batch(num)
        return self._bind(x, t, prediction, *conditions)

    @abc.abstractmethod
    def _bind(
        self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray, *conditions: np.ndarray
    ) -> Callable[[], None]:
        """As `bind`, whose checks have passed. May raise InputError for what only the backend knows."""
