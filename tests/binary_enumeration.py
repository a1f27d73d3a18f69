"""Binary chains solved by listing all 2^d states: matrices for kernels, vectors for distributions, float64.

Nothing here uses the closed forms of `diffusion.binomial`: the forward kernel is written down bit by bit from
table App.1 of Sohl-Dickstein et al. 2015, and everything else is matrix algebra and Bayes' rule.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np


def all_states(num_bits: int) -> np.ndarray:
    """uint8 [2^d, 1, 1, d], the first bit the most significant."""
    return np.array(list(itertools.product((0, 1), repeat=num_bits)), dtype=np.uint8)[:, None, None]


def kernel(beta: float, num_bits: int) -> np.ndarray:
    """[from, to]: the forward step as a matrix over all states."""
    bit = np.array([[1.0 - beta / 2.0, beta / 2.0], [beta / 2.0, 1.0 - beta / 2.0]])
    return functools.reduce(np.kron, [bit] * num_bits)


def state_probabilities(probability: np.ndarray) -> np.ndarray:
    """Of each state, for independent bits: [..., d] probabilities of a 1 → [..., 2^d]."""
    states = all_states(probability.shape[-1]).reshape(-1, probability.shape[-1])
    of_bits = np.where(states == 1, probability[..., None, :], 1.0 - probability[..., None, :])
    return of_bits.prod(axis=-1)


class EnumeratedChain:
    """A data distribution [2^d] and betas [T], and everything that follows.

    Attributes:
        kernels: [T, from, to].
        from_data: [T, x_0, x_t], q(x_t | x_0).
        marginals: [T + 1, 2^d], q(x_0), q(x_1) …, index 0 the data.
    """

    def __init__(self, data: np.ndarray, betas: np.ndarray) -> None:
        num_bits = int(np.log2(len(data)))
        self.data, self.num_bits, self.states = data, num_bits, all_states(num_bits)
        self.kernels = np.stack([kernel(beta, num_bits) for beta in betas])
        self.from_data = np.stack(list(itertools.accumulate(self.kernels, np.matmul)))
        self.marginals = np.stack([data, *(data @ matrix for matrix in self.from_data)])

    def posterior(self, timestep: int) -> np.ndarray:
        """q(x_{t−1} | x_t, x_0) by Bayes' rule: [x_0, x_t, x_{t−1}]."""
        before = np.eye(len(self.data)) if timestep == 0 else self.from_data[timestep - 1]
        joint = before[:, None, :] * self.kernels[timestep].T[None]  # [x_0, x_t, x_{t−1}]
        return joint / joint.sum(axis=2, keepdims=True)

    def true_reverse(self, timestep: int) -> np.ndarray:
        """q(x_{t−1} | x_t), bits not independent: [x_t, x_{t−1}]."""
        joint = (self.marginals[timestep][:, None] * self.kernels[timestep]).T
        return joint / joint.sum(axis=1, keepdims=True)

    def bits_given(self, distribution: np.ndarray) -> np.ndarray:
        """P(bit = 1) under distributions over states: [..., 2^d] → [..., d]."""
        return distribution @ self.states.reshape(len(self.states), -1).astype(np.float64)

    def generated(self, reverse: list[np.ndarray]) -> np.ndarray:
        """p(x_0) [2^d] of a reverse chain [x_t, x_{t−1}] for t = 0..T−1 that begins with fair coins."""
        p = np.full(len(self.data), 1.0 / len(self.data))
        for matrix in reversed(reverse):
            p = p @ matrix
        return p

    def bound_bits(self, reverse: list[np.ndarray]) -> float:
        """The bound on E −log₂ p(x_0), by the definition: E_q log₂ q(x_1:T | x_0) − log₂ p(x_0:T), exact.

        q(x_t | x_{t−1}) and p(x_{t−1} | x_t) need the joint distribution of neighbours alone.
        """
        total = float(self.num_bits)  # −log₂ p(x_T)
        for timestep, matrix in enumerate(reverse):
            joint = self.marginals[timestep][:, None] * self.kernels[timestep]  # [x_{t−1}, x_t]
            possible = joint > 0
            ratio = self.kernels[timestep][possible] / matrix.T[possible]
            total += float((joint[possible] * np.log2(ratio)).sum())
        return total


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    """½ Σ |p − q|."""
    return 0.5 * float(np.abs(p - q).sum())


def entropy_bits(p: np.ndarray) -> float:
    """−Σ p log₂ p."""
    return -float((p[p > 0] * np.log2(p[p > 0])).sum())
