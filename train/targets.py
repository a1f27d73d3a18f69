"""The input and the target of the network: x_t, and the target of each prediction type."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from diffusion.noise_schedule import NoiseSchedule


class ScheduleTables:
    """√ᾱ_t and √(1 − ᾱ_t) for every timestep, float32 [T], made in float64 and cast once."""

    def __init__(self, schedule: NoiseSchedule, device: torch.device | str = "cpu") -> None:
        self.sqrt_alpha_bar = to_table(np.sqrt(schedule.alpha_bar), device)
        self.sqrt_one_minus_alpha_bar = to_table(np.sqrt(1.0 - schedule.alpha_bar), device)


def diffuse(x_start: torch.Tensor, timesteps: torch.Tensor, eps: torch.Tensor, tables: ScheduleTables) -> torch.Tensor:
    """x_t = √ᾱ_t · x_start + √(1 − ᾱ_t) · eps, [N, C, H, W] (Ho et al. 2020, eq. 4)."""
    signal = for_elements(tables.sqrt_alpha_bar[timesteps], x_start)  # [N, 1, 1, 1]
    noise = for_elements(tables.sqrt_one_minus_alpha_bar[timesteps], x_start)
    return signal * x_start + noise * eps


Target = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, ScheduleTables], torch.Tensor]


def target_epsilon(
    x_start: torch.Tensor, timesteps: torch.Tensor, eps: torch.Tensor, tables: ScheduleTables
) -> torch.Tensor:
    """The noise that was added (Ho et al. 2020, eq. 14)."""
    return eps


def target_sample(
    x_start: torch.Tensor, timesteps: torch.Tensor, eps: torch.Tensor, tables: ScheduleTables
) -> torch.Tensor:
    """The data (Luo 2022, eq. 94)."""
    return x_start


def target_v(x_start: torch.Tensor, timesteps: torch.Tensor, eps: torch.Tensor, tables: ScheduleTables) -> torch.Tensor:
    """v = √ᾱ_t · eps − √(1 − ᾱ_t) · x_start (Salimans & Ho 2022, section 4)."""
    signal = for_elements(tables.sqrt_alpha_bar[timesteps], x_start)
    noise = for_elements(tables.sqrt_one_minus_alpha_bar[timesteps], x_start)
    return signal * eps - noise * x_start


def target_score(
    x_start: torch.Tensor, timesteps: torch.Tensor, eps: torch.Tensor, tables: ScheduleTables
) -> torch.Tensor:
    """∇ ln q(x_t | x_0) = −eps/√(1 − ᾱ_t), whose mean given x_t is the score ∇ ln q(x_t) (Luo 2022, eq. 151)."""
    return -eps / for_elements(tables.sqrt_one_minus_alpha_bar[timesteps], eps)


TARGETS: dict[str, Target] = {
    "epsilon": target_epsilon,
    "sample": target_sample,
    "v_prediction": target_v,
    "score": target_score,
}


def for_elements(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[N] → [N, 1, …, 1], to multiply with `like` of shape [N, …]."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))


def to_table(values: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """One number per timestep, rounded to float32 [T] on the device."""
    return torch.from_numpy(values.astype(np.float32)).to(device)
