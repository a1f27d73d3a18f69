"""Ancestral sampling, Algorithm 2 of Ho et al. 2020, over all timesteps or any subset of them."""

from __future__ import annotations

import numpy as np

from diffusion.prediction import x_start_coefficients
from diffusion.process import Process
from diffusion.step_table import StepTable, rows_alpha_bar


def ddpm(process: Process, timesteps: np.ndarray) -> StepTable:
    """The rows of Algorithm 2 with the process's variance and clip.

    A subset of timesteps is a diffusion of its own, whose α is the ratio of neighbouring ᾱ
    (Nichol & Dhariwal 2021, section 4). With `epsilon` and no clip, a row is line 4 of Algorithm 2 literally:
    x' = (x − β/√(1−ᾱ)·ε)/√α + σ·z.

    Raises:
        InputError: timesteps that are not a strictly descending choice of 0..T−1.
    """
    alpha_bar, alpha_bar_prev = rows_alpha_bar(process.schedule.alpha_bar, timesteps)
    alpha = alpha_bar / alpha_bar_prev
    beta = 1.0 - alpha
    posterior_variance = beta * (1.0 - alpha_bar_prev) / (1.0 - alpha_bar)  # Ho et al. 2020, eq. 7
    u, v = x_start_coefficients(process.prediction_type, alpha_bar)

    # The posterior mean, Ho et al. 2020, eq. 7, with the predicted x_start in place of x_0.
    a = np.sqrt(alpha) * (1.0 - alpha_bar_prev) / (1.0 - alpha_bar)
    b = np.sqrt(alpha_bar_prev) * beta / (1.0 - alpha_bar)
    q = np.zeros_like(b)
    if process.clip_sample is None:
        # x_start is linear in x and the prediction: put it into the mean, which leaves Ho et al. 2020, eq. 11.
        a, q, b = a + b * u, b * v, np.zeros_like(b)

    s, k = noise_columns(process.variance_type, beta, posterior_variance)
    return StepTable.from_columns(
        "ddpm",
        np.asarray(timesteps, dtype=np.int64),
        {"u": u, "v": v, "a": a, "q": q, "b": b, "s": s, "k": k},
        clip=np.inf if process.clip_sample is None else process.clip_sample,
        learned=process.variance_type == "learned_range",
    )


def noise_columns(
    variance_type: str, beta: np.ndarray, posterior_variance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(s, k) with noise_std = s·exp(k·w), float64 [R] each; both 0 in the last row, which adds no noise.

    fixed_small and fixed_large: Ho et al. 2020, section 3.2. learned_range: Nichol & Dhariwal 2021, eq. 15,
    exp(½[f·ln β + (1−f)·ln β̃]) with f = (w + 1)/2.
    """
    s, k = np.zeros_like(beta), np.zeros_like(beta)
    noisy = slice(0, len(beta) - 1)
    if variance_type == "fixed_large":
        s[noisy] = np.sqrt(beta[noisy])
    elif variance_type == "fixed_small":
        s[noisy] = np.sqrt(posterior_variance[noisy])
    else:
        s[noisy] = (beta[noisy] * posterior_variance[noisy]) ** 0.25
        k[noisy] = 0.25 * np.log(beta[noisy] / posterior_variance[noisy])
    return s, k
