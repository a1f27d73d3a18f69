"""What training minimizes: Algorithm 1, line 5 (Ho et al. 2020), and what took its place since.

A prediction type is a function in `train.targets.TARGETS`, a weighted squared error one in
`train.loss_weights.WEIGHTS`; the objective itself knows of none by name. The bound is `train.bound_loss.BoundLoss`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process
from train.bound_loss import BoundLoss
from train.loss_weights import DEFAULT_MIN_SNR_GAMMA, WEIGHTS, x_start_error_scale
from train.targets import TARGETS, ScheduleTables, diffuse, to_table

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
        """What the network is being trained to do, with the schedule of now."""
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
