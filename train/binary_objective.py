"""What the binomial chain's training minimizes: its bound, at one random timestep per sample."""

from __future__ import annotations

import math

import numpy as np
import torch

from diffusion.noise_schedule import NoiseSchedule


class BinaryObjective:
    """An unbiased estimate of the bound's part that depends on the network, Σ_{t≥1} L_{t−1} + L_0.

    Maximizing K (Sohl-Dickstein et al. 2015, section 2.4), but with a last step that is learned too.

    Args:
        schedule: of the chain.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        # Near-certain flips differ from 1 and from each other by less than float32 resolves.
        self._betas, self._alpha_bar, self._alpha_bar_prev = (
            torch.from_numpy(np.array(table)) for table in (schedule.betas, schedule.alpha_bar, schedule.alpha_bar_prev)
        )

    def corrupt(self, x_start: torch.Tensor, timesteps: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """x_t ~ q(x_t | x_0) (Sohl-Dickstein et al. 2015, table App.1): float32 [N, C, H, W] of 0 and 1.

        Args:
            x_start: 0 and 1, [N, C, H, W].
            timesteps: int64 [N].
            uniform: in [0, 1), [N, C, H, W].
        """
        left = _per_sample(self._alpha_bar[timesteps], x_start)
        return (uniform < x_start * left + 0.5 * (1.0 - left)).float()

    def bits(
        self, logits: torch.Tensor, x_start: torch.Tensor, x_t: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """L_{t−1}, or L_0 where t is 0, of each sample: float64 [N], in bits.

        As `diffusion.binomial_bound.step_bits`, but for L_{t−1} with logits so large that float64 takes them for
        certain.

        Args:
            logits: of x_start being 1, [N, C, H, W].
            x_start, x_t: 0 and 1, [N, C, H, W].
            timesteps: int64 [N].
        """
        logits, x_start = logits.double(), x_start.double()
        first = _per_sample(timesteps == 0, x_start)
        of_x_start = torch.nn.functional.binary_cross_entropy_with_logits(logits, x_start, reduction="none")
        one, zero = (self._posterior(torch.full_like(x_start, bit), x_t, timesteps) for bit in (1.0, 0.0))
        probability = torch.sigmoid(logits)
        # At t = 0 both would be 0 and 1, whose logarithms have no gradient: that row is the other branch's.
        model = torch.where(first, 0.5, probability * one + (1.0 - probability) * zero)
        posterior = torch.where(first, 0.5, torch.where(x_start == 1.0, one, zero))
        kl = posterior * (posterior / model).log() + (1.0 - posterior) * ((1.0 - posterior) / (1.0 - model)).log()
        return torch.where(first, of_x_start, kl).flatten(1).sum(dim=1) / math.log(2.0)

    def _posterior(self, x_start: torch.Tensor, x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        # q(x_{t−1} = 1 | x_t, x_0), as `diffusion.binomial.q_x_prev_given_x_t`.
        left = _per_sample(self._alpha_bar_prev[timesteps], x_start)
        before = x_start * left + 0.5 * (1.0 - left)
        half_beta = _per_sample(self._betas[timesteps] / 2.0, x_start)
        from_one = torch.where(x_t == 1.0, 1.0 - half_beta, half_beta)
        ones, zeros = before * from_one, (1.0 - before) * (1.0 - from_one)
        return ones / (ones + zeros)


def _per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))  # [N] → [N, 1, 1, 1]
