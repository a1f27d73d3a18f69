"""The variational bound as a loss: one term of it for each sample, with gradients (Ho et al. 2020, eq. 5).

The same numbers as `diffusion.bound` gives without a clip; here in torch, from the prediction's error.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from diffusion.gaussian import log_variance, log_variance_ends
from diffusion.prediction import x_start_coefficients
from diffusion.process import Process
from train.targets import for_elements, to_table

# In standard deviations: the probability beyond it is 0 in float64.
_OPEN = 1e3


class BoundLoss:
    """T·L_t + L_T for a t drawn evenly from 0 … T−1: its mean over t is the whole bound, in bits per dimension.

    The terms are far from equal: on small images more than half of the bound lies in the first two percent of the
    timesteps. Drawing t evenly is unbiased, but as noisy as that, which is why L_simple trains better samples and a
    learned schedule, which makes the terms more equal, a better bound.

    The mean is not clipped: a clip would stop gradients where x_start is furthest off.

    Args:
        process: schedule, prediction, variance, gray levels.
        device: where batches are.
    """

    def __init__(self, process: Process, device: torch.device | str = "cpu") -> None:
        schedule = process.schedule
        self._levels, self._num_timesteps = process.sample.levels, schedule.num_train_timesteps
        alpha_bar = schedule.alpha_bar
        _, v = x_start_coefficients(process.prediction_type, alpha_bar)
        # The posterior mean's share of x_start, Ho et al. 2020, eq. 7. Both means hold the same multiple of x_t, so
        # that they differ by this times v times the prediction's error.
        share = np.sqrt(schedule.alpha_bar_prev) * schedule.betas / (1.0 - alpha_bar)
        log_small, log_large = log_variance_ends(schedule)
        self._log_error_scale = to_table(2.0 * np.log(share * np.abs(v)), device)
        self._log_small, self._log_large = to_table(log_small, device), to_table(log_large, device)
        self._learned = process.variance_type == "learned_range"
        if not self._learned:
            fixed = log_variance(process, np.arange(self._num_timesteps), np.zeros(()))
            self._log_fixed = to_table(fixed, device)
        self._v_at_data = float(v[0])
        self._prior = float(alpha_bar[-1]), float(-alpha_bar[-1] - np.log1p(-alpha_bar[-1]))

    def per_sample(
        self, error: torch.Tensor, w: torch.Tensor | None, x_start: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Bits per dimension, float32 [N].

        Args:
            error: target − prediction, [N, C, H, W].
            w: the prediction's last C channels with learned_range, else None.
            x_start: [N, C, H, W], on the gray levels.
            timesteps: int64 [N].
        """
        log_small = for_elements(self._log_small[timesteps], error)  # [N, 1, 1, 1]
        if self._learned:
            assert w is not None
            # Nichol & Dhariwal 2021, eq. 15, with the fraction (w + 1)/2.
            fraction = 0.5 * (w + 1.0)
            log_large = for_elements(self._log_large[timesteps], error)
            log_variance_p = fraction * log_large + (1.0 - fraction) * log_small
        else:
            log_variance_p = for_elements(self._log_fixed[timesteps], error)
        log_ratio = log_small - log_variance_p
        squared = error.square() * torch.exp(for_elements(self._log_error_scale[timesteps], error) - log_variance_p)
        nats = (0.5 * (torch.expm1(log_ratio) - log_ratio + squared)).flatten(1).mean(dim=1)
        at_data = timesteps == 0
        if bool(at_data.any()):
            decoder = self._decoder(error[at_data], log_variance_p[at_data], x_start[at_data])
            nats = nats.masked_scatter(at_data, decoder.to(nats.dtype))
        signal, rest = self._prior
        prior = 0.5 * (signal * x_start.square().flatten(1).mean(dim=1) + rest)  # KL(q(x_T | x_0) ‖ N(0, I))
        return (self._num_timesteps * nats + prior) / math.log(2.0)

    def _decoder(self, error: torch.Tensor, log_variance_p: torch.Tensor, x_start: torch.Tensor) -> torch.Tensor:
        """−ln of the probability of each pixel's bin (Ho et al. 2020, eq. 13), nats, the mean of each sample."""
        # In float64: differences of tails far from the mean are lost in float32.
        error, precision = error.double(), torch.exp(-0.5 * log_variance_p.double())
        half_bin = 1.0 / (self._levels - 1)
        from_mean = self._v_at_data * error  # x_start less the decoder's mean
        lower, upper = (from_mean - half_bin) * precision, (from_mean + half_bin) * precision
        lower = torch.where(x_start <= half_bin - 1.0, upper.detach() - _OPEN, lower)
        upper = torch.where(x_start >= 1.0 - half_bin, lower.detach() + _OPEN, upper)
        return -log_interval_probability(lower, upper).flatten(1).mean(dim=1)


def log_interval_probability(lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """ln[Φ(upper) − Φ(lower)] for finite float64 lower < upper, differentiable, without a floor.

    `diffusion.discretized_decoder` has it in NumPy, which has no ln Φ of its own.
    """
    mirrored = lower + upper > 0.0  # to the left, where Φ does not round to 1
    lower, upper = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_upper = torch.special.log_ndtr(upper)
    return log_upper + torch.log(-torch.expm1(torch.special.log_ndtr(lower) - log_upper))
