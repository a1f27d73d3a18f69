"""What a client asks for: how many samples, of which seed, by which chain; and the tables of those chains."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffusion.conditioning import check_conditioning
from diffusion.errors import InputError
from diffusion.number_checks import real_number, shown, whole_number
from diffusion.process import Process
from diffusion.samplers import SAMPLERS, make_table
from diffusion.step_table import StepTable
from runtime.chain.interface import check_seed_range
from runtime.conditions import Classes, GivenConditions, given_conditions
from runtime.formats.table_file import read_table

_KEPT_TABLES = 256


@dataclass(frozen=True)
class ImageRequest:
    """A number of samples of one chain. Equal requests give equal images, as `runtime.sample` with the same flags does.

    Attributes:
        num: samples; sample k has the index start + k.
        seed: 0..2⁶⁴−1.
        start: the first sample index.
        sampler: one of `RequestTables.samplers`; never a file, which would be one of the server's.
        steps, spacing, timesteps, eta, use_clipped_model_output: as in `runtime.Sampler`.
        classes, guidance, conditions: of a conditional network, as in `runtime.Sampler.sample`.
        deadline_s: seconds, from when the request was taken, after which nobody wants the images; None for no end.
        preview_every: rows of the chain between two previews; 0 for none.

    Raises:
        InputError: a number out of its range.
    """

    num: int = 1
    seed: int = 0
    start: int = 0
    sampler: str = "ddpm"
    steps: int | None = None
    spacing: str | None = None
    timesteps: tuple[int, ...] | None = None
    eta: float | None = None
    use_clipped_model_output: bool | None = None
    classes: Classes | None = None
    guidance: float | Sequence[float] | None = None
    conditions: Mapping[str, object] = field(default_factory=dict)
    deadline_s: float | None = None
    preview_every: int = 0

    def __post_init__(self) -> None:
        seed, start, num = check_seed_range(self.seed, self.start, self.num)
        for name, value in (("seed", seed), ("start", start), ("num", num)):
            object.__setattr__(self, name, value)
        if self.steps is not None:
            object.__setattr__(self, "steps", whole_number(self.steps, "steps", 1))
        if self.timesteps is not None:
            object.__setattr__(self, "timesteps", tuple(self.timesteps))
        object.__setattr__(self, "preview_every", whole_number(self.preview_every, "preview_every", 0))
        if self.deadline_s is not None and not real_number(self.deadline_s, "deadline_s") > 0:
            raise InputError(f"deadline_s is {shown(self.deadline_s)}, expected a positive number of seconds")

    def given(self, process: Process) -> GivenConditions:
        """The values of the network's conditions. Raises InputError as `runtime.conditions.given_conditions`."""
        try:
            return given_conditions(process, self.classes, self.guidance, self.conditions)
        except InputError:
            raise
        except (TypeError, ValueError) as error:  # of NumPy, for lists that are no array
            raise InputError(f"conditions are no arrays of numbers: {error}") from None


class RequestTables:
    """The tables of requests, made once for each chain and checked as `runtime.Sampler` checks its own.

    Args:
        process: of the network.
        precision: of the engine's arithmetic.
        force: run a table although it turns the rounding of a low-precision engine into visible error, or was fitted to
            another checkpoint.
        files: tables of the service's own, such as fitted ones. A request names one by its file's name without `.json`.

    Raises:
        InputError: a file that holds no table, or one that the process cannot run; or a name that is taken.
    """

    def __init__(self, process: Process, precision: str, force: bool = False, files: Iterable[Path] = ()) -> None:
        self._process, self._precision, self._force = process, precision, force
        self._own: dict[str, StepTable] = {}
        for path in files:
            name = path.name.removesuffix(".json")
            if name in self.samplers:
                raise InputError(f"{path}: its sampler would be named {name}, which there is already; rename the file")
            self._own[name] = self._checked_file(path)
        self._make = functools.lru_cache(_KEPT_TABLES)(self._make_table)

    @property
    def samplers(self) -> list[str]:
        """The names that a request may give: of `diffusion.samplers.SAMPLERS`, and those of files."""
        return [*SAMPLERS, *self._own]

    @property
    def steps_of_files(self) -> dict[str, int]:
        """The network calls of each table that came from a file, by its name."""
        return {name: len(table) for name, table in self._own.items()}

    @property
    def notes_of_files(self) -> list[str]:
        """What a user should know of the tables that came from files, one line each."""
        return [note for table in self._own.values() for note in table.notes]

    def table(self, request: ImageRequest) -> StepTable:
        """The rows of a request's chain; the same object for the same chain, as long as it is remembered.

        Raises:
            InputError: the name of no sampler, or a chain that the process cannot run, or not in this precision.
        """
        if not isinstance(request.sampler, str) or request.sampler not in self.samplers:
            raise InputError(f"sampler is {shown(request.sampler)}, expected one of {', '.join(self.samplers)}")
        options = (request.eta, request.use_clipped_model_output)
        return self._make(request.sampler, request.steps, request.spacing, request.timesteps, options)

    def _make_table(
        self,
        sampler: str,
        steps: int | None,
        spacing: str | None,
        timesteps: tuple[int, ...] | None,
        options: tuple[float | None, bool | None],
    ) -> StepTable:
        eta, use_clipped_model_output = options
        table = make_table(
            self._process,
            self._own.get(sampler, sampler),
            steps,
            spacing,
            timesteps,
            eta=eta,
            use_clipped_model_output=use_clipped_model_output,
            force=self._force,
        )
        return self._checked(table)

    def _checked_file(self, path: Path) -> StepTable:
        table = read_table(path)
        if table.ascending:
            raise InputError(f"{path}: its chain runs from data to noise, expected one that begins with noise")
        try:
            return self._checked(make_table(self._process, table, force=self._force))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def _checked(self, table: StepTable) -> StepTable:
        if self._precision != "fp32" and not self._force:
            check_conditioning(table, self._precision)
        table.cast()  # here it is this request's error, in the slots it would be everybody's
        return table
