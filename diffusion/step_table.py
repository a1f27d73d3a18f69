"""A sampler is a table: rows of coefficients that one loop and one kernel run, whatever the method.

    x_start = clip(u·x + v·p)                                       p = first C channels of the prediction
    x'      = a·x + q·p + b·x_start + c1·h1 + c2·h2 + s·exp(k·w)·z  w = last C channels (learned_range)
    h1'     = d·x + f·x_start + g1·h1 + g2·h2
    h2'     = x_start or h1 (fixed per table)

Terms are summed left to right. The noise term is absent where s = 0, and exp(k·w) where the table is
not `learned`. A row's timestep is what the network is given and what numbers its noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from diffusion.errors import InputError
from diffusion.number_checks import is_whole, real_array, real_number, shown, whole_numbers, yes_or_no
from diffusion.spacing import check_timesteps

# The order of a row's coefficients, in every array of them and in kernels/step.h.
COLUMNS = ("u", "v", "a", "q", "b", "c1", "c2", "d", "f", "g1", "g2", "s", "k")

# x_T is drawn from N(0, I), although q(x_T) keeps √ᾱ_T of the data: above this the difference shows.
MAX_FIRST_ALPHA_BAR = 0.01


@dataclass(frozen=True, eq=False)
class StepTable:
    """The rows of a chain, in the order it runs.

    Attributes:
        sampler: the method's name.
        timesteps: int64 [R], training timesteps, strictly descending; strictly ascending where the chain runs from
            data to noise (`diffusion.samplers.ddim.ddim_inversion`).
        coefficients: float64 [R, 13], columns as `COLUMNS`.
        clip: bound for |x_start|; inf for none.
        histories: 0, 1 or 2, how many arrays beside x the method carries from step to step.
        learned: whether the prediction's last C channels are the log-variance's place w.
        h2_is_x_start: whether the second history is the last x_start (else the last first history).
        notes: what a user should know of this table, one line each.
        checkpoint_sha256: of the checkpoint that the numbers were fitted to; None for a method's own, which are right
            for every network.

    Raises:
        InputError: rows that no chain can run.
    """

    sampler: str
    timesteps: np.ndarray
    coefficients: np.ndarray
    clip: float = np.inf
    histories: int = 0
    learned: bool = False
    h2_is_x_start: bool = False
    notes: tuple[str, ...] = ()
    checkpoint_sha256: str | None = None

    def __post_init__(self) -> None:
        name = f"table of {self.sampler}"
        # Private copies.
        whole = whole_numbers(self.timesteps)
        if whole is None or whole.ndim != 1 or not whole.size or max(map(abs, whole)) >= 2**63:
            raise InputError(f"{name}: timesteps are {shown(self.timesteps)}, expected one or more whole numbers")
        timesteps = whole.astype(np.int64)
        coefficients = real_array(self.coefficients, f"{name}: coefficients")
        for field, array in (("timesteps", timesteps), ("coefficients", coefficients)):
            array.flags.writeable = False
            object.__setattr__(self, field, array)
        object.__setattr__(self, "clip", real_number(self.clip, f"{name}: clip"))
        for field in ("learned", "h2_is_x_start"):
            object.__setattr__(self, field, yes_or_no(getattr(self, field), f"{name}: {field}"))
        if self.coefficients.shape != (len(timesteps), len(COLUMNS)):
            raise InputError(
                f"{name}: coefficients have shape {self.coefficients.shape}, "
                f"expected ({len(timesteps)}, {len(COLUMNS)})"
            )
        if not np.isfinite(self.coefficients).all():
            row, column = np.argwhere(~np.isfinite(self.coefficients))[0]
            raise InputError(
                f"{name}: coefficient {COLUMNS[column]} at timestep {timesteps[row]} is "
                f"{self.coefficients[row, column]}, expected a finite number"
            )
        if not is_whole(self.histories) or self.histories not in (0, 1, 2):
            raise InputError(f"{name}: histories is {shown(self.histories)}, expected 0, 1 or 2")
        object.__setattr__(self, "histories", int(self.histories))
        if not self.clip > 0:
            raise InputError(f"{name}: clip is {self.clip}, expected a positive number")
        # Distinct, because they number the noise: a row that came twice would draw the same again.
        steps = np.diff(timesteps)
        rises_without_noise = bool((steps > 0).all() and not self.column("s").any())
        if timesteps.min() < 0 or not ((steps < 0).all() or rises_without_noise):
            first = ", ".join(str(timestep) for timestep in timesteps[:8]) + (", …" if timesteps.size > 8 else "")
            raise InputError(
                f"{name}: timesteps are {first}, expected 0 or more, strictly descending "
                "(or strictly ascending, if no row adds noise)"
            )
        if self.column("s")[-1] != 0.0:
            raise InputError(f"{name}: the last row adds noise, expected s = 0 there")
        if self.h2_is_x_start and self.histories < 2:
            raise InputError(f"{name}: h2 is x_start, but with histories {self.histories} there is no h2")
        for column in self._unread_columns():
            if self.column(column).any():
                raise InputError(
                    f"{name}: {column} is not 0, but with histories {self.histories} and learned {self.learned} "
                    "no step reads it"
                )

    def _unread_columns(self) -> tuple[str, ...]:
        """Coefficients that no step of this table reads."""
        of_histories = {0: ("c1", "d", "f", "g1", "c2", "g2"), 1: ("c2", "g2"), 2: ()}[self.histories]
        return (*of_histories, *(() if self.learned else ("k",)))

    @classmethod
    def from_columns(
        cls,
        sampler: str,
        timesteps: np.ndarray,
        columns: Mapping[str, np.ndarray | float],
        **attributes: object,
    ) -> StepTable:
        """A table from the columns that differ from 0; each is a number or float64 [R]."""
        coefficients = np.zeros((len(timesteps), len(COLUMNS)))
        for name, values in columns.items():
            coefficients[:, COLUMNS.index(name)] = np.asarray(values) + 0.0  # no -0.0: equal tables, equal bits
        return cls(sampler, timesteps, coefficients, **attributes)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.timesteps)

    def column(self, name: str) -> np.ndarray:
        """One coefficient for all rows, float64 [R]."""
        return self.coefficients[:, COLUMNS.index(name)]

    def cast(self) -> np.ndarray:
        """The coefficients as the kernels read them, float32 [R, 13]: the one place where a table is rounded.

        Raises:
            InputError: a coefficient too large for float32.
        """
        with np.errstate(over="ignore"):
            rounded = self.coefficients.astype(np.float32)
        if not np.isfinite(rounded).all():
            row, column = np.argwhere(~np.isfinite(rounded))[0]
            raise InputError(
                f"table of {self.sampler}: coefficient {COLUMNS[column]} at timestep {self.timesteps[row]} is "
                f"{self.coefficients[row, column]:g}, too large for float32"
            )
        return rounded

    @property
    def conditioning(self) -> float:
        """G = max |q + b·v|: how much one step can amplify an error of the prediction."""
        return float(np.abs(self.column("q") + self.column("b") * self.column("v")).max())

    def absolute_tolerance(self) -> float:
        """How far a float32 chain of this table may be from a float64 one, per unit of data: 1e-5 + 2⁻²¹·G."""
        return 1e-5 + 2.0**-21 * self.conditioning

    @property
    def ascending(self) -> bool:
        """Whether the rows run from data to noise; a single row says nothing of its direction."""
        return bool(self.timesteps[-1] > self.timesteps[0])

    def with_notes(self, *notes: str) -> StepTable:
        """The same table with these notes too, none of them twice."""
        return replace(self, notes=tuple(dict.fromkeys((*self.notes, *notes))))


def start_note(alpha_bar: np.ndarray, timestep: int) -> str | None:
    """A note on a chain that begins with pure noise at a timestep where the network saw some of the data.

    Args:
        alpha_bar: float64 [T] of the schedule.
        timestep: that the chain begins at.
    """
    if alpha_bar[timestep] <= MAX_FIRST_ALPHA_BAR:
        return None
    return (
        f"the chain begins at timestep {timestep} with alpha_bar {alpha_bar[timestep]:.3g}: pure noise is not what the "
        "network saw there"
    )


def rows_alpha_bar(alpha_bar: np.ndarray, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ᾱ, ᾱ′) of every row: of its own timestep and of the next row's; ᾱ′ = 1, data, in the last row.

    Args:
        alpha_bar: float64 [T] of the schedule.
        timesteps: int64 [R], strictly descending.
    """
    own = alpha_bar[check_timesteps(timesteps, len(alpha_bar))]
    return own, np.append(own[1:], 1.0)
