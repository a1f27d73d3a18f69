"""What a binomial chain costs in bits: the bound on −log₂ p(x_0), Sohl-Dickstein's K, and the optimum.

−log₂ p(x_0) ≤ L_T + Σ_{t≥1} L_{t−1} + L_0 (Ho et al. 2020, eq. 5), with
L_T = KL(q(x_T | x_0) ‖ π), L_{t−1} = KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t)) and L_0 = −log₂ p(x_0 | x_1).

K of Sohl-Dickstein et al. 2015, section 2.4, has the same L_{t−1} and three entropies in place of the ends:
K = −Σ L_{t−1} + H_q(X_T | X_0) − H_q(X_1 | X_0) − H_p(X_T). Since H_p(X_T) − H_q(X_T | X_0) = L_T, the two differ in
one term: where L_0 stands above, K has H_q(X_1 | X_0), the cost of a last step that is not learned but is the
forward kernel run once more (their appendix B).

`OptimalBits` is the network with the best bound there can be; it is known for data that take few values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffusion.binomial import (
    PredictLogits,
    bit_words,
    bits_from_words,
    logistic,
    p_x_prev_given_x_t,
    q_x_prev_given_x_t,
    q_x_t_given_x_start,
)
from diffusion.noise_schedule import NoiseSchedule
from diffusion.normal import LIKELIHOOD, draw_number


@dataclass(frozen=True, eq=False)
class BinomialBound:
    """Bits per sample of N samples.

    Attributes:
        terms: float64 [T, N]; row 0 is L_0, row t is L_{t−1} of the paper's step t + 1, for one draw of x_t each.
        prior: L_T, of any sample.
        entropy_x_T_given_x_start, entropy_x_1_given_x_start: H_q(X_T | X_0) and H_q(X_1 | X_0) of one sample.
        entropy_prior: H_p(X_T), the number of bits.
    """

    terms: np.ndarray
    prior: float
    entropy_x_T_given_x_start: float
    entropy_x_1_given_x_start: float
    entropy_prior: float

    @property
    def bits(self) -> float:
        """The bound on −log₂ p(x_0), mean over the samples."""
        return self.prior + float(self.terms.sum(axis=0).mean())

    @property
    def standard_error(self) -> float:
        """Of `bits`, from the spread over samples and draws; NaN for a single one."""
        totals = self.terms.sum(axis=0)
        return float(totals.std(ddof=1) / np.sqrt(len(totals))) if len(totals) > 1 else float("nan")

    @property
    def K(self) -> float:
        """Sohl-Dickstein et al. 2015, section 2.4: a lower bound on log₂ p(x_0), mean over the samples."""
        return (
            -float(self.terms[1:].sum(axis=0).mean())
            + self.entropy_x_T_given_x_start
            - self.entropy_x_1_given_x_start
            - self.entropy_prior
        )


def estimate_bound(
    schedule: NoiseSchedule, predict: PredictLogits, x_start: np.ndarray, seed: int = 0, start: int = 0
) -> BinomialBound:
    """The bound by one x_t ~ q(x_t | x_0) per sample and timestep; everything but these draws is exact.

    Two networks are given the same draws: stream 1 of `diffusion.normal`, by seed, sample index and timestep.

    Args:
        schedule: of the chain.
        predict: the network; called T times.
        x_start: 0 and 1, [N, C, H, W]; repeat samples for a smaller error.
        seed: of the draws.
        start: sample index of x_start[0].
    """
    num, num_bits = len(x_start), x_start[0].size
    terms = np.empty((schedule.num_train_timesteps, num))
    for timestep in range(schedule.num_train_timesteps):
        words = bit_words(x_start.shape[1:], seed, range(start, start + num), draw_number(timestep, LIKELIHOOD))
        x_t = bits_from_words(words, q_x_t_given_x_start(schedule, x_start, timestep))
        logits = predict(x_t.astype(np.float32), np.full(num, timestep, dtype=np.float32))
        terms[timestep] = step_bits(schedule, logits, x_start, x_t, timestep).reshape(num, -1).sum(axis=1)
    entropy_x_T, entropy_x_1 = (
        num_bits * float(entropy_bits(q_x_t_given_x_start(schedule, np.zeros(()), timestep))) for timestep in (-1, 0)
    )
    return BinomialBound(terms, num_bits - entropy_x_T, entropy_x_T, entropy_x_1, float(num_bits))


def step_bits(
    schedule: NoiseSchedule, logits: np.ndarray, x_start: np.ndarray, x_t: np.ndarray, timestep: int
) -> np.ndarray:
    """L_{t−1} of every bit, or L_0 at timestep 0: float64 of x's shape; infinite where the model excludes x_start.

    Args:
        schedule: of the chain.
        logits: the network's, of x_start being 1.
        x_start, x_t: 0 and 1.
        timestep: index of x_t.
    """
    if timestep == 0:
        # −log₂ of the logistic function of ±logits, in the form that no logit overflows or cancels.
        of_x_start = np.where(np.asarray(x_start) == 1, logits, -np.asarray(logits)).astype(np.float64)
        return np.logaddexp(0.0, -of_x_start) / np.log(2.0)
    posterior = q_x_prev_given_x_t(schedule, x_start, x_t, timestep)
    model = p_x_prev_given_x_t(schedule, logistic(logits), x_t, timestep)
    return kl_bits(posterior, model)


def kl_bits(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(B(p) ‖ B(q)) in bits, for probabilities of a 1; 0·log 0 = 0."""
    return _part(p, q) + _part(1.0 - p, 1.0 - q)


def entropy_bits(p: np.ndarray) -> np.ndarray:
    """Entropy of B(p) in bits."""
    return -_part(p, np.ones(())) - _part(1.0 - np.asarray(p), np.ones(()))


def _part(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(p) > 0.0, p * np.log2(p / q), 0.0)


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
