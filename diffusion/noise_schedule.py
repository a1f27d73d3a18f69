"""The noise schedule: how much of the data is left after every timestep of the forward process.

Timesteps count 0..T−1 in code; index 0 is the papers' t = 1. Everything here is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from diffusion.errors import InputError
from diffusion.number_checks import real_array, real_number, shown, whole_number

# Draw numbers carry the timestep in 20 bits, see diffusion/normal.py.
MAX_TRAIN_TIMESTEPS = 2**20 - 1


def _linear(num_train_timesteps: int, beta_start: float, beta_end: float) -> np.ndarray:
    # Ho et al. 2020, section 4: constants increasing linearly from β_1 to β_T.
    return np.linspace(beta_start, beta_end, num_train_timesteps)


def _scaled_linear(num_train_timesteps: int, beta_start: float, beta_end: float) -> np.ndarray:
    # Linear in √β: the schedule of Rombach et al. 2022.
    return np.linspace(math.sqrt(beta_start), math.sqrt(beta_end), num_train_timesteps) ** 2


def _sigmoid(num_train_timesteps: int, beta_start: float, beta_end: float) -> np.ndarray:
    # Xu et al. 2022 (GeoDiff): a logistic curve over [−6, 6].
    logistic = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, num_train_timesteps)))
    return beta_start + (beta_end - beta_start) * logistic


def _squared_cosine(time: np.ndarray) -> np.ndarray:
    # Nichol & Dhariwal 2021, eq. 17, with s = 0.008.
    offset = 0.008
    return np.cos((time + offset) / (1.0 + offset) * math.pi / 2.0) ** 2


def _laplace(time: np.ndarray) -> np.ndarray:
    # After Hang et al. 2024, as diffusers has it: log-SNR has a Laplace distribution, b = ½, and √ of ᾱ is taken.
    log_snr = -0.5 * np.copysign(1.0, 0.5 - time) * np.log(1.0 - 2.0 * np.abs(0.5 - time) + 1e-6)
    return np.sqrt(1.0 / (1.0 + np.exp(-log_snr)))


def _exponential(time: np.ndarray) -> np.ndarray:
    # diffusers' HeunDiscreteScheduler.
    return np.exp(-12.0 * time)


_WITH_BETA_RANGE: dict[str, Callable[[int, float, float], np.ndarray]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "sigmoid": _sigmoid,
}
# Curves f over [0, 1] with ᾱ_t = f(t)/f(0).
_BY_ALPHA_BAR: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "squaredcos_cap_v2": _squared_cosine,
    "laplace": _laplace,
    "exp": _exponential,
}
_MAX_BETA = 0.999
SCHEDULE_KINDS = (*_WITH_BETA_RANGE, *_BY_ALPHA_BAR, "explicit")
SCHEDULES_WITH_ENDS = tuple(_WITH_BETA_RANGE)


def _betas_of_curve(curve: Callable[[np.ndarray], np.ndarray], num_train_timesteps: int) -> np.ndarray:
    # Nichol & Dhariwal 2021, section 3.2: β_t = 1 − ᾱ_t/ᾱ_{t−1}, capped so that the end is no singularity.
    values = curve(np.arange(num_train_timesteps + 1) / num_train_timesteps)
    return np.minimum(1.0 - values[1:] / values[:-1], _MAX_BETA)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """β_t for t = 0..T−1 and what follows from them (Ho et al. 2020, section 2).

    Attributes:
        kind: one of `SCHEDULE_KINDS`; diffusers' name for the curve.
        betas: float64 [T], variance added by each timestep, in (0, 1]; 1 only as the last one.
        beta_start, beta_end: the curve's ends where the kind has them, else None.

    Raises:
        InputError: a β outside (0, 1), or a β of 1 anywhere but last.
    """

    kind: str
    betas: np.ndarray
    beta_start: float | None = None
    beta_end: float | None = None

    def __post_init__(self) -> None:
        betas = np.atleast_1d(real_array(self.betas, "noise schedule: betas"))  # a private copy
        if betas.ndim != 1 or not 1 <= len(betas) <= MAX_TRAIN_TIMESTEPS:
            raise InputError(
                f"noise schedule: betas of shape {betas.shape}, expected a list of 1 to {MAX_TRAIN_TIMESTEPS} numbers"
            )
        good = (betas > 0.0) & (betas < 1.0)
        good[-1] |= betas[-1] == 1.0  # zero terminal signal-to-noise ratio
        if not good.all():
            worst = int(np.flatnonzero(~good)[0])
            raise InputError(
                f"noise schedule: beta[{worst}] is {float(betas[worst])!r}, expected 0 < beta < 1 (1 only as the last)"
            )
        alpha_bar = np.cumprod(1.0 - betas)
        if not (alpha_bar[0] < 1.0 and np.all(np.diff(alpha_bar) < 0.0)):
            flat = int(np.argmin(np.diff(alpha_bar, prepend=1.0) < 0.0))
            raise InputError(
                f"noise schedule: alpha_bar[{flat}] is {float(alpha_bar[flat])!r}, no smaller than the one before it; "
                "expected betas that float64 can tell from 0 and that leave some signal until the last timestep"
            )
        betas.flags.writeable = False
        object.__setattr__(self, "betas", betas)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoiseSchedule) and np.array_equal(self.betas, other.betas)

    def __hash__(self) -> int:
        return hash(self.betas.tobytes())

    @classmethod
    def make(
        cls,
        kind: str,
        num_train_timesteps: int = 1000,
        beta_start: float | None = None,
        beta_end: float | None = None,
    ) -> NoiseSchedule:
        """A schedule by name, with diffusers' constructor defaults (β from 1e-4 to 0.02).

        Raises:
            InputError: an unknown kind, T < 1, or ends that are not 0 < beta < 1.
        """
        num_train_timesteps = whole_number(num_train_timesteps, "noise schedule: num_train_timesteps")
        if not 1 <= num_train_timesteps <= MAX_TRAIN_TIMESTEPS:
            raise InputError(
                f"noise schedule: num_train_timesteps is {shown(num_train_timesteps)}, "
                f"expected 1 to {MAX_TRAIN_TIMESTEPS}"
            )
        if kind in _BY_ALPHA_BAR:
            return cls(kind, _betas_of_curve(_BY_ALPHA_BAR[kind], num_train_timesteps))
        if kind not in _WITH_BETA_RANGE:
            raise InputError(f"noise schedule: kind is {kind!r}, expected one of {', '.join(SCHEDULE_KINDS)}")
        start = 1e-4 if beta_start is None else real_number(beta_start, "noise schedule: beta_start")
        end = 0.02 if beta_end is None else real_number(beta_end, "noise schedule: beta_end")
        for name, value in (("beta_start", start), ("beta_end", end)):
            if not 0.0 < value < 1.0:
                raise InputError(f"noise schedule: {name} is {value!r}, expected a number between 0 and 1")
        return cls(kind, _WITH_BETA_RANGE[kind](num_train_timesteps, start, end), start, end)

    @classmethod
    def explicit(cls, betas: Sequence[float] | np.ndarray) -> NoiseSchedule:
        """A schedule given β by β: a learned one, or one rescaled to zero terminal signal-to-noise ratio."""
        try:
            values = real_array(betas, "betas")
        except InputError as error:
            raise InputError(f"noise schedule: betas is not a list of numbers ({error})") from None
        return cls("explicit", values)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> NoiseSchedule:
        """The inverse of `to_json`. Raises InputError on a missing, unknown or impossible field."""
        kind = fields.get("kind")
        if not isinstance(kind, str):
            raise InputError(f"noise schedule: kind is {shown(str(kind))}, expected one of {', '.join(SCHEDULE_KINDS)}")
        if kind == "explicit":
            known = {"kind", "num_train_timesteps", "betas"}
        elif kind in _WITH_BETA_RANGE:
            known = {"kind", "num_train_timesteps", "beta_start", "beta_end"}
        else:
            known = {"kind", "num_train_timesteps"}
        unknown = sorted(set(fields) - known)
        if kind in SCHEDULE_KINDS and unknown:
            raise InputError(f"noise schedule: {kind} has no field {unknown[0]!r}, expected {', '.join(sorted(known))}")
        # A default in place of a lost field would silently be another schedule, with other samples.
        missing = sorted(name for name in known if fields.get(name) is None and kind != "explicit")
        if kind in SCHEDULE_KINDS and missing:
            raise InputError(f"noise schedule: {kind} needs the field {missing[0]!r}, which is missing")
        if kind == "explicit":
            if "betas" not in fields:
                raise InputError("noise schedule: explicit needs the field 'betas', a list of numbers")
            schedule = cls.explicit(fields["betas"])
            declared = whole_number(
                fields.get("num_train_timesteps", schedule.num_train_timesteps), "noise schedule: num_train_timesteps"
            )
            if declared != schedule.num_train_timesteps:
                raise InputError(
                    f"noise schedule: num_train_timesteps is {shown(declared)}, "
                    f"but there are {len(schedule.betas)} betas"
                )
            return schedule
        return cls.make(
            kind,
            fields.get("num_train_timesteps", 1000),
            fields.get("beta_start"),
            fields.get("beta_end"),
        )

    def to_json(self) -> dict[str, Any]:
        """The fields under `"schedule"` of a process: enough to make the same float64 betas again."""
        fields: dict[str, Any] = {"kind": self.kind, "num_train_timesteps": self.num_train_timesteps}
        if self.kind == "explicit":
            fields["betas"] = self.betas.tolist()
        elif self.beta_start is not None:
            fields |= {"beta_start": self.beta_start, "beta_end": self.beta_end}
        return fields

    def with_zero_terminal_snr(self) -> NoiseSchedule:
        """The same schedule shifted and scaled in √ᾱ so that the last ᾱ is exactly 0 (Lin et al. 2024, algorithm 1)."""
        root = np.sqrt(self.alpha_bar)
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        alpha_bar = root**2
        return NoiseSchedule.explicit(1.0 - np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]]))

    def truncated(self, num_train_timesteps: int) -> NoiseSchedule:
        """The schedule's first timesteps alone: what a chain that begins there covers."""
        return NoiseSchedule.explicit(self.betas[:num_train_timesteps])

    @property
    def num_train_timesteps(self) -> int:
        """T."""
        return len(self.betas)

    @cached_property
    def alphas(self) -> np.ndarray:
        """α_t = 1 − β_t, float64 [T]."""
        return _frozen(1.0 - self.betas)

    @cached_property
    def alpha_bar(self) -> np.ndarray:
        """ᾱ_t = ∏ α_s for s ≤ t, float64 [T] (Ho et al. 2020, eq. 4)."""
        return _frozen(np.cumprod(self.alphas))

    @cached_property
    def alpha_bar_prev(self) -> np.ndarray:
        """ᾱ_{t−1}, float64 [T]; 1 before the first timestep: data."""
        return _frozen(np.concatenate([[1.0], self.alpha_bar[:-1]]))

    @cached_property
    def posterior_variance(self) -> np.ndarray:
        """β̃_t = β_t (1 − ᾱ_{t−1}) / (1 − ᾱ_t), float64 [T] (Ho et al. 2020, eq. 7); 0 at t = 0."""
        return _frozen(self.betas * (1.0 - self.alpha_bar_prev) / (1.0 - self.alpha_bar))

    @cached_property
    def snr(self) -> np.ndarray:
        """Signal-to-noise ratio ᾱ_t / (1 − ᾱ_t), float64 [T] (Luo 2022, eq. 109)."""
        return _frozen(self.alpha_bar / (1.0 - self.alpha_bar))

    @cached_property
    def log_snr(self) -> np.ndarray:
        """ln of the signal-to-noise ratio, float64 [T]; −inf where ᾱ = 0. The λ of DPM-Solver is half of it."""
        with np.errstate(divide="ignore"):
            return _frozen(np.log(self.alpha_bar) - np.log1p(-self.alpha_bar))


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
