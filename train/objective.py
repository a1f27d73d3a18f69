"""What training minimizes: Algorithm 1, line 5 (Ho et al. 2020), and later variants.

A prediction type is a function in `train.targets.TARGETS`, a weighted squared error one in `WEIGHTS`; the objective
itself names none of them. The bound is `train.bound_loss.BoundLoss`.

Weights are of the squared error by timestep: what makes a loss of ‖target − prediction‖². With x_start = u·x_t +
v·prediction, ‖x_0 − x̂_0‖² = v²·‖target − prediction‖²: a weight that is known for one prediction type is known for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.prediction import x_start_coefficients
from diffusion.process import Process
from train.bound_loss import BoundLoss
from train.targets import TARGETS, ScheduleTables, diffuse, to_table

DEFAULT_MIN_SNR_GAMMA = 5.0


def weights_simple(process: Process, min_snr_gamma: float) -> np.ndarray:
    """1 for epsilon, sample and v_prediction (Ho et al. 2020, eq. 14: L_simple), 1 − ᾱ_t for score; float64 [T].

    The score is −eps/√(1 − ᾱ_t), up to a hundred times as large at t = 0 as at T−1. Weighted by 1 − ᾱ_t, as
    Song & Ermon 2019, section 4.2, weight by σ², its squared error is that of epsilon, term by term.
    """
    if process.prediction_type == "score":
        return 1.0 - process.schedule.alpha_bar
    return np.ones(process.schedule.num_train_timesteps)


def weights_min_snr(process: Process, min_snr_gamma: float) -> np.ndarray:
    """min(SNR_t, γ) on ‖x_0 − x̂_0‖² (Hang et al. 2023, section 3.4), float64 [T].

    On the prediction's own error that is min(SNR, γ)/SNR for epsilon, min(SNR, γ) for sample, min(SNR, γ)/(SNR + 1) for
    v_prediction, and epsilon's weight times 1 − ᾱ for score: the same loss whatever is predicted. Where nothing is
    left of the data it would be 0 and the network never trained at the timestep that sampling starts from:
    there the weight is 1.
    """
    schedule = process.schedule
    weights = np.minimum(schedule.snr, min_snr_gamma) * x_start_error_scale(process)
    return np.where(schedule.snr == 0.0, 1.0, weights)


WEIGHTS: dict[str, Callable[[Process, float], np.ndarray]] = {"simple": weights_simple, "min-snr": weights_min_snr}


def x_start_error_scale(process: Process) -> np.ndarray:
    """v², float64 [T]: from the prediction's squared error to that of x_start."""
    _, v = x_start_coefficients(process.prediction_type, process.schedule.alpha_bar)
    return np.square(v)


VLB = "vlb"
LOSSES = (*WEIGHTS, VLB)
# λ of L_hybrid = L_simple + λ·L_vlb (Nichol & Dhariwal 2021, eq. 16).
HYBRID_WEIGHT = 0.001


class Measured(NamedTuple):
    """Of each sample, float32 [N]: the loss, and the mean square of eps − ε̂ without gradients."""

    losses: torch.Tensor
    eps_errors: torch.Tensor


class Objective:
    """The loss of a network on a batch.

    `simple` and `min-snr` are weighted squared errors, averaged over elements where eq. 14 of Ho et al. 2020 sums. With
    a learned variance they have `HYBRID_WEIGHT` times the bound added, through which only the variance learns: the
    mean in it is held fixed (Nichol & Dhariwal 2021, section 3.1). `vlb` is the bound itself, in bits per dimension.

    Args:
        process: schedule, prediction, variance, gray levels.
        loss: a name in `LOSSES`.
        min_snr_gamma: γ of `min-snr`.
        device: where batches are.

    Raises:
        InputError: an unknown loss.
    """

    def __init__(
        self,
        process: Process,
        loss: str = "simple",
        min_snr_gamma: float = DEFAULT_MIN_SNR_GAMMA,
        device: torch.device | str = "cpu",
    ) -> None:
        if loss not in LOSSES:
            raise InputError(f"loss is {loss!r}, training knows {', '.join(LOSSES)}")
        self._loss, self._min_snr_gamma, self._device = loss, min_snr_gamma, device
        self._target = TARGETS[process.prediction_type]
        self._channels, self._learned = process.sample.channels, process.variance_type == "learned_range"
        self._set_process(process)

    @property
    def process(self) -> Process:
        """What the network is being trained to do, with the current schedule."""
        return self._process

    def set_schedule(self, schedule: NoiseSchedule) -> None:
        """Go on with another noise schedule of as many timesteps."""
        self._set_process(dataclasses.replace(self._process, schedule=schedule))

    def _set_process(self, process: Process) -> None:
        self._process = process
        self._tables = ScheduleTables(process.schedule, self._device)
        self._to_eps_error = to_table(process.schedule.snr * x_start_error_scale(process), self._device)
        if self._loss in WEIGHTS:
            self._weights = to_table(WEIGHTS[self._loss](process, self._min_snr_gamma), self._device)
        self._bound = BoundLoss(process, self._device) if self._loss == VLB or self._learned else None

    def per_sample(
        self,
        network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        x_start: torch.Tensor,
        timesteps: torch.Tensor,
        eps: torch.Tensor,
    ) -> torch.Tensor:
        """The loss of each sample, float32 [N].

        Args:
            network: from x_t [N, C, H, W] and timesteps [N] to the prediction, [N, C or 2C, H, W].
            x_start: float32 [N, C, H, W] in [−1, 1].
            timesteps: int64 [N], 0 … T−1.
            eps: float32 [N, C, H, W], standard normal.
        """
        return self.measure(network, x_start, timesteps, eps).losses

    def measure(
        self,
        network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        x_start: torch.Tensor,
        timesteps: torch.Tensor,
        eps: torch.Tensor,
    ) -> Measured:
        """As `per_sample`, with the error that the loss was made of."""
        x_t = diffuse(x_start, timesteps, eps, self._tables)
        prediction = network(x_t, timesteps).float()
        p, w = prediction[:, : self._channels], prediction[:, self._channels :] if self._learned else None
        error = self._target(x_start, timesteps, eps, self._tables) - p
        squared = error.square().flatten(1).mean(dim=1)
        eps_errors = self._to_eps_error[timesteps] * squared.detach()
        if self._loss == VLB:
            assert self._bound is not None
            return Measured(self._bound.per_sample(error, w, x_start, timesteps), eps_errors)
        losses = self._weights[timesteps] * squared
        if self._bound is not None:
            losses = losses + HYBRID_WEIGHT * self._bound.per_sample(error.detach(), w, x_start, timesteps)
        return Measured(losses, eps_errors)
