"""What training minimizes: Algorithm 1, line 5 (Ho et al. 2020).

A prediction type is a function in `TARGETS`, a loss one in `LOSSES`; the objective itself knows of none by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule


@dataclass(frozen=True)
class Terms:
    """Everything a target or a loss may depend on, for one batch.

    Attributes:
        x_start, eps, x_t: float32 [N, C, H, W].
        timesteps: int64 [N].
        tables: of the noise schedule.
    """

    x_start: torch.Tensor
    eps: torch.Tensor
    x_t: torch.Tensor
    timesteps: torch.Tensor
    tables: ScheduleTables


class ScheduleTables:
    """√ᾱ_t and √(1 − ᾱ_t) for every timestep, float32 [T], made in float64 and cast once."""

    def __init__(self, schedule: NoiseSchedule, device: torch.device | str = "cpu") -> None:
        self.sqrt_alpha_bar = _table(np.sqrt(schedule.alpha_bar), device)
        self.sqrt_one_minus_alpha_bar = _table(np.sqrt(1.0 - schedule.alpha_bar), device)


def diffuse(x_start: torch.Tensor, timesteps: torch.Tensor, eps: torch.Tensor, tables: ScheduleTables) -> torch.Tensor:
    """x_t = √ᾱ_t · x_start + √(1 − ᾱ_t) · eps, [N, C, H, W] (Ho et al. 2020, eq. 4)."""
    signal = per_sample(tables.sqrt_alpha_bar[timesteps], x_start)  # [N, 1, 1, 1]
    noise = per_sample(tables.sqrt_one_minus_alpha_bar[timesteps], x_start)
    return signal * x_start + noise * eps


def target_epsilon(terms: Terms) -> torch.Tensor:
    """The noise that was added (Ho et al. 2020, eq. 14)."""
    return terms.eps


def loss_simple(prediction: torch.Tensor, target: torch.Tensor, terms: Terms) -> torch.Tensor:
    """‖target − prediction‖² averaged over elements, float32 [N] (Ho et al. 2020, eq. 14: L_simple)."""
    return (target - prediction).square().flatten(1).mean(dim=1)


TARGETS: dict[str, Callable[[Terms], torch.Tensor]] = {"epsilon": target_epsilon}
LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor, Terms], torch.Tensor]] = {"simple": loss_simple}


class Objective:
    """The loss of a network on a batch.

    Args:
        schedule: the noise schedule.
        prediction_type: a name in `TARGETS`.
        loss: a name in `LOSSES`.
        device: where batches are.

    Raises:
        InputError: an unknown name.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        prediction_type: str = "epsilon",
        loss: str = "simple",
        device: torch.device | str = "cpu",
    ) -> None:
        if prediction_type not in TARGETS:
            raise InputError(f"prediction_type is {prediction_type!r}, training knows {', '.join(TARGETS)}")
        if loss not in LOSSES:
            raise InputError(f"loss is {loss!r}, training knows {', '.join(LOSSES)}")
        self._target, self._loss = TARGETS[prediction_type], LOSSES[loss]
        self._tables = ScheduleTables(schedule, device)

    def per_sample(
        self,
        network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        x_start: torch.Tensor,
        timesteps: torch.Tensor,
        eps: torch.Tensor,
    ) -> torch.Tensor:
        """The loss of each sample, float32 [N].

        Args:
            network: from x_t [N, C, H, W] and timesteps [N] to the prediction.
            x_start: float32 [N, C, H, W] in [−1, 1].
            timesteps: int64 [N], 0 … T−1.
            eps: float32 [N, C, H, W], standard normal.
        """
        x_t = diffuse(x_start, timesteps, eps, self._tables)
        terms = Terms(x_start, eps, x_t, timesteps, self._tables)
        prediction = network(x_t, timesteps).float()
        target = self._target(terms)
        return self._loss(prediction, target, terms)


def per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[N] → [N, 1, …, 1], to multiply with `like` of shape [N, …]."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))


def _table(values: np.ndarray, device: torch.device | str) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(device)
