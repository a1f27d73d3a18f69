"""What the binomial chain's training minimizes: its bound, at one random timestep per sample."""

from __future__ import annotations

import math

import numpy as np
import torch

from diffusion.noise_schedule import NoiseSchedule
from train.mlp import Mlp
from train.targets import for_elements


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
        left = for_elements(self._alpha_bar[timesteps], x_start)
        return (uniform < x_start * left + 0.5 * (1.0 - left)).float()

    def bits(
        self, logits: torch.Tensor, x_start: torch.Tensor, x_t: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """L_{t−1}, or L_0 where t is 0, of each sample: float64 [N], in bits.

        As `diffusion.binomial_bound.step_bits`, except for L_{t−1} with logits whose probability rounds to 0 or 1 in
        float64.

        Args:
            logits: of x_start being 1, [N, C, H, W].
            x_start, x_t: 0 and 1, [N, C, H, W].
            timesteps: int64 [N].
        """
        logits, x_start = logits.double(), x_start.double()
        first = for_elements(timesteps == 0, x_start)
        of_x_start = torch.nn.functional.binary_cross_entropy_with_logits(logits, x_start, reduction="none")
        one, zero = (self._posterior(torch.full_like(x_start, bit), x_t, timesteps) for bit in (1.0, 0.0))
        probability = torch.sigmoid(logits)
        # At t = 0 both would be 0 and 1, whose logarithms have no gradient: that row takes the other branch.
        model = torch.where(first, 0.5, probability * one + (1.0 - probability) * zero)
        posterior = torch.where(first, 0.5, torch.where(x_start == 1.0, one, zero))
        kl = posterior * (posterior / model).log() + (1.0 - posterior) * ((1.0 - posterior) / (1.0 - model)).log()
        return torch.where(first, of_x_start, kl).flatten(1).sum(dim=1) / math.log(2.0)

    def _posterior(self, x_start: torch.Tensor, x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        # q(x_{t−1} = 1 | x_t, x_0), as `diffusion.binomial.q_x_prev_given_x_t`.
        left = for_elements(self._alpha_bar_prev[timesteps], x_start)
        before = x_start * left + 0.5 * (1.0 - left)
        half_beta = for_elements(self._betas[timesteps] / 2.0, x_start)
        from_one = torch.where(x_t == 1.0, 1.0 - half_beta, half_beta)
        ones, zeros = before * from_one, (1.0 - before) * (1.0 - from_one)
        return ones / (ones + zeros)


class BinaryLoss:
    """The bound's part that depends on the network, in bits, on a fresh batch at every call.

    Args:
        patterns: to draw from, evenly: 0 and 1, [K, C, H, W].
        schedule: of the chain.
        batch_size: N.
        seed: of the choice of patterns, timesteps and noise.
    """

    def __init__(self, patterns: np.ndarray, schedule: NoiseSchedule, batch_size: int, seed: int) -> None:
        self._patterns, self._batch_size = patterns.astype(np.float32), batch_size
        self._num_timesteps = schedule.num_train_timesteps
        self._objective = BinaryObjective(schedule)
        self._generator = np.random.default_rng(seed)

    def __call__(self, network: Mlp) -> torch.Tensor:
        """A scalar, with gradients."""
        generator, num = self._generator, self._batch_size
        x_start = torch.from_numpy(self._patterns[generator.integers(len(self._patterns), size=num)])
        # One timestep from each of as many equal parts of 0..T−1: uniform, but with less variance.
        place = (np.arange(num) + generator.random(num)) / num
        timesteps = torch.from_numpy((place * self._num_timesteps).astype(np.int64))
        uniform = torch.from_numpy(generator.random(x_start.shape, dtype=np.float32))
        x_t = self._objective.corrupt(x_start, timesteps, uniform)
        logits = network(x_t, timesteps.float())
        return self._num_timesteps * self._objective.bits(logits, x_start, x_t, timesteps).mean()
