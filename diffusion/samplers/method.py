"""What a sampler declares: the function that makes its table, and the facts that a user chooses it by."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffusion.errors import InputError
from diffusion.number_checks import real_number
from diffusion.prediction import x_start_coefficients
from diffusion.process import Process
from diffusion.step_table import StepTable, rows_alpha_bar


def clipped_table(
    sampler: str,
    process: Process,
    timesteps: np.ndarray,
    columns: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]],
    **attributes: object,
) -> StepTable:
    """The table of a method that reads the network only through the clipped x_start.

    Args:
        sampler: its name.
        process: gives u, v and the clip.
        timesteps: int64 [R], strictly descending.
        columns: from ᾱ and ᾱ′ of the rows, float64 [R] each, to the other columns.
        attributes: of `StepTable`.

    Raises:
        InputError: timesteps that are not a strictly descending choice of 0..T−1; what `columns` refuses.
    """
    alpha_bar, alpha_bar_prev = rows_alpha_bar(process.schedule.alpha_bar, timesteps)
    u, v = x_start_coefficients(process.prediction_type, alpha_bar)
    clip = np.inf if process.clip_sample is None else process.clip_sample
    return StepTable.from_columns(
        sampler, timesteps, {"u": u, "v": v, **columns(alpha_bar, alpha_bar_prev)}, clip=clip, **attributes
    )


@dataclass(frozen=True)
class Method:
    """A sampler.

    Attributes:
        make: (process, timesteps, **options) → table; its name is the sampler's, the first line of its
            docstring describes it, and its keyword-only arguments are the options.
        order: of the method as its paper counts it, its first and last rows apart.
        histories: 0, 1 or 2, what it keeps beside x.
        stochastic: whether it adds noise with its default options.
        inverse: (process, timesteps) → the table that runs its rows upwards, from data to noise; None if there is none.
    """

    make: Callable[..., StepTable]
    order: int
    histories: int
    stochastic: bool
    inverse: Callable[[Process, np.ndarray], StepTable] | None = None

    @property
    def name(self) -> str:
        """What users call it."""
        return self.make.__name__

    @property
    def summary(self) -> str:
        """One line on what it is."""
        return (inspect.getdoc(self.make) or "").partition("\n")[0]

    @property
    def options(self) -> dict[str, float | bool]:
        """Its options and their defaults."""
        parameters = inspect.signature(self.make).parameters.values()
        return {argument.name: argument.default for argument in parameters if argument.kind is argument.KEYWORD_ONLY}

    def table(self, process: Process, timesteps: np.ndarray, **options: float | bool) -> StepTable:
        """Its table for timesteps that `diffusion.spacing.check_timesteps` has passed.

        Raises:
            InputError: an unknown option, one that is not a number (or not a bool where its default is one), or what
                the method itself refuses.
        """
        taken: dict[str, float | bool] = {}
        for name, value in options.items():
            if name not in self.options:
                has = f"its options are {', '.join(self.options)}" if self.options else "it has no options"
                raise InputError(f"{name} was given, but sampler {self.name} does not take it: {has}; leave it out")
            if isinstance(self.options[name], bool):
                if not isinstance(value, bool | np.bool_):
                    raise InputError(f"{name} is {value!r}, expected True or False")
                taken[name] = bool(value)
            else:
                taken[name] = real_number(value, name)
        return self.make(process, timesteps, **taken)
