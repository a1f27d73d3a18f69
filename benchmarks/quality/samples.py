"""The samples a quality measurement compares: drawn once for each configuration and seed, and kept."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from commands.whole_files import whole_file
from diffusion.errors import InputError
from diffusion.process import Process
from diffusion.samplers import DEFAULT_SAMPLER, SAMPLERS, make_table
from diffusion.samplers.user_table import table_to_json
from diffusion.spacing import SPACINGS
from diffusion.step_table import StepTable
from runtime.array_files import open_arrays
from runtime.engines.interface import Engine
from runtime.formats.table_file import read_table
from runtime.images import quantize
from runtime.sampler import NonFiniteError, Sampler

# Samples of long runs are saved at this interval, so that an interruption loses little.
_SAVE_EVERY_SECONDS = 30.0
OWN = "own"
"""Stands in the place of a spacing for a table of the user's."""

_VARIANCES = ("fixed_small", "fixed_large")


def method_of(sampler: str) -> str:
    """A sampler's name without its variance: `ddpm` of `ddpm:fixed_small`."""
    return sampler.partition(":")[0]


@dataclass(frozen=True, order=True)
class Configuration:
    """One way to sample.

    Attributes:
        sampler: one of `diffusion.samplers.SAMPLERS`, for ddpm optionally with its variance: `ddpm:fixed_small`; or the
            name of a table's file, without its suffix.
        num_steps: network calls.
        spacing: one of `diffusion.spacing.SPACINGS`; `OWN` for a table.
        table_sha256: of a table's rows; empty for a built-in sampler.
        rows: a table; None for a built-in sampler, and where only the results of the table are known.
    """

    sampler: str
    num_steps: int
    spacing: str
    table_sha256: str = ""
    rows: StepTable | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of_table(cls, path: Path, process: Process) -> Configuration:
        """That of a table's file. Raises InputError as `read_table` and `diffusion.samplers.make_table`."""
        rows = make_table(process, read_table(path))
        fields = {name: value for name, value in table_to_json(rows).items() if name not in ("sampler", "notes")}
        sha256 = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
        return cls(path.stem, len(rows), OWN, sha256, rows)

    @property
    def is_own(self) -> bool:
        """Whether this is a table of the user's, not a built-in sampler."""
        return bool(self.table_sha256)

    @property
    def method(self) -> str:
        """The sampler without its variance."""
        return method_of(self.sampler)

    def is_reference(self, num_train_timesteps: int) -> bool:
        """Whether this is Algorithm 2 with every timestep, with whichever variance."""
        return not self.is_own and self.method == DEFAULT_SAMPLER and self.num_steps == num_train_timesteps

    @property
    def name(self) -> str:
        """For tables and file names."""
        spacing = f"{OWN}-{self.table_sha256[:12]}" if self.is_own else self.spacing
        return f"{self.sampler.replace(':', '.')}-{self.num_steps}-{spacing}"

    def table(self, process: Process) -> StepTable:
        """Its rows. Raises InputError as `diffusion.samplers.make_table`."""
        if self.is_own:
            assert self.rows is not None  # only what was given is drawn
            return self.rows
        _, _, variance = self.sampler.partition(":")
        if variance:
            process = replace(process, variance_type=variance)
        return make_table(process, self.method, self.num_steps, self.spacing)


@dataclass(frozen=True)
class Draw:
    """The samples of one configuration and seed.

    Attributes:
        images: uint8 [n, H, W, C].
        seconds: that drawing them took; not a benchmark: the machine may do other work.
    """

    images: np.ndarray
    seconds: float


def check_sampler(name: str, process: Process) -> str:
    """`name`, if it is a sampler that this process can run.

    Raises:
        InputError: an unknown sampler, or a variance that cannot be chosen.
    """
    sampler, colon, variance = name.partition(":")
    if sampler not in SAMPLERS:
        raise InputError(f"sampler is {name!r}, expected some of {', '.join(SAMPLERS)}, ddpm:fixed_small")
    if colon and (sampler != DEFAULT_SAMPLER or variance not in _VARIANCES or process.variance_type not in _VARIANCES):
        raise InputError(
            f"sampler is {name!r}; a variance, {' or '.join(_VARIANCES)}, may be chosen for ddpm alone, "
            f"and not where the network has learned it (it is {process.variance_type} here)"
        )
    return name


def all_samplers(process: Process) -> list[str]:
    """Every sampler, ddpm with both of its variances where they may be chosen."""
    if process.variance_type not in _VARIANCES:
        return list(SAMPLERS)
    both = [f"{DEFAULT_SAMPLER}:{variance}" for variance in reversed(_VARIANCES)]
    return [*both, *(name for name in SAMPLERS if name != DEFAULT_SAMPLER)]


def all_spacings() -> list[str]:
    """Every spacing, the default first: of two that choose the same timesteps the first is measured."""
    return sorted(SPACINGS, key=lambda spacing: spacing != "trailing")


class SampleStore:
    """Draws samples, and keeps them in a folder if one is given, so that nothing is drawn twice.

    Seeds mean the same x_T for every configuration. A file holds at least as many samples as were asked for so far;
    a longer request goes on behind them, a shorter one takes the first.

    Args:
        engine: the network.
        batch_size: samples per network call.
        folder: one `.npz` for each configuration and seed, `arr_0` uint8 [n, H, W, C]; None to keep nothing.
        after_samples: called with the number of samples just drawn times their network calls.
    """

    def __init__(
        self,
        engine: Engine,
        batch_size: int,
        folder: Path | None,
        after_samples: Callable[[int], None] = lambda calls: None,
    ) -> None:
        self._engine, self._batch_size, self._folder = engine, batch_size, folder
        self._after_samples = after_samples

    def draw(self, configuration: Configuration, seed: int, num: int) -> Draw:
        """The samples 0..num−1 of this seed.

        Raises:
            InputError: a kept file that is of another engine, or cannot be read.
            NonFiniteError: a sample came out NaN or infinite.
        """
        kept = self._read(configuration, seed)
        parts, seconds = ([kept.images], kept.seconds) if kept else ([], 0.0)
        have = len(kept.images) if kept else 0
        if have >= num:
            return Draw(parts[0][:num], seconds * num / have)
        # What a low precision does to a table is what is measured here, so nothing is refused.
        sampler = Sampler(
            self._engine, sampler=configuration.table(self._engine.process), batch_size=self._batch_size, force=True
        )
        saved = begin = time.perf_counter()
        for batch in sampler.batches(num - have, seed, have):
            if batch.non_finite:
                raise NonFiniteError(batch.non_finite)
            parts.append(quantize(batch.x))
            self._after_samples(len(batch.x) * configuration.num_steps)
            if time.perf_counter() - saved > _SAVE_EVERY_SECONDS:
                saved = time.perf_counter()
                self._write(configuration, seed, Draw(np.concatenate(parts), seconds + saved - begin))
        draw = Draw(np.concatenate(parts), seconds + time.perf_counter() - begin)
        self._write(configuration, seed, draw)
        return draw

    def _path(self, configuration: Configuration, seed: int) -> Path | None:
        return None if self._folder is None else self._folder / f"{configuration.name}-seed{seed}.npz"

    def _identity(self) -> str:
        return json.dumps({"engine_sha256": self._engine.sha256, "process": self._engine.process.to_json()})

    def _read(self, configuration: Configuration, seed: int) -> Draw | None:
        path = self._path(configuration, seed)
        if path is None or not path.exists():
            return None
        with open_arrays(path, "remove it") as fields:
            if set(fields.names) != {"identity", "arr_0", "seconds"}:
                raise fields.refused(f"not a file of kept samples, it holds {', '.join(fields.names[:5])}")
            identity, images = str(fields.read("identity")), fields.read("arr_0")
            seconds = fields.read("seconds")
            shape = self._engine.process.sample
            if images.dtype != np.uint8 or images.shape[1:] != (shape.height, shape.width, shape.channels):
                raise fields.refused(f"not a file of kept samples, it holds {images.dtype} {list(images.shape)}")
            if seconds.shape or seconds.dtype != np.float64:
                raise fields.refused("not a file of kept samples, its time is no number")
        if identity != self._identity():
            raise InputError(f"{path}: its samples are of another engine; remove the folder, or choose another one")
        return Draw(images, float(seconds))

    def _write(self, configuration: Configuration, seed: int, draw: Draw) -> None:
        path = self._path(configuration, seed)
        if path is not None:
            with whole_file(path) as temporary:
                np.savez(temporary, arr_0=draw.images, seconds=draw.seconds, identity=self._identity())
