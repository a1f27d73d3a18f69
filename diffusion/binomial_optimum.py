"""The best network there can be, for data that take few values: what the learned one is measured against."""

from __future__ import annotations

import numpy as np

from diffusion.binomial import q_x_t_given_x_start
from diffusion.noise_schedule import NoiseSchedule


class OptimalBits:
    """Logits of q(x_0 = 1 | x_t), bit by bit, for data that are `patterns[k]` with probability `weights[k]`.

    By Bayes' rule over the patterns; no other reverse chain with independent bits has a higher bound, see
    `diffusion.binomial.p_x_prev_given_x_t`.

    Args:
        schedule: of the chain.
        patterns: 0 and 1, [K, C, H, W].
        weights: [K], positive, of sum 1.
    """

    def __init__(self, schedule: NoiseSchedule, patterns: np.ndarray, weights: np.ndarray) -> None:
        self._schedule = schedule
        self._patterns = np.asarray(patterns, dtype=np.float64)
        self._log_weights = np.log(np.asarray(weights, dtype=np.float64))

    def __call__(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        """x [N, C, H, W], t [N] → logits float64 [N, C, H, W], infinite where a bit is certain."""
        posterior = self.posterior(x, t)  # [N, K]
        flat = self._patterns.reshape(len(self._patterns), -1)
        with np.errstate(divide="ignore"):
            # The two sums apart: 1 − P would lose the digits of a P near 1.
            logits = np.log(posterior @ flat) - np.log(posterior @ (1.0 - flat))
        return logits.reshape(x.shape)

    def posterior(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        """q(x_0 = patterns[k] | x_t), float64 [N, K], for x [N, C, H, W] at timesteps t [N]."""
        timesteps = np.asarray(t).astype(np.int64)
        probability = q_x_t_given_x_start(
            self._schedule, self._patterns[None], timesteps.reshape(-1, *[1] * self._patterns.ndim)
        )  # [N, K, C, H, W]
        likelihood = np.where(np.asarray(x)[:, None] == 1, probability, 1.0 - probability)
        log_joint = self._log_weights + np.log(likelihood).reshape(*likelihood.shape[:2], -1).sum(axis=-1)  # [N, K]
        joint = np.exp(log_joint - log_joint.max(axis=1, keepdims=True))
        return joint / joint.sum(axis=1, keepdims=True)
