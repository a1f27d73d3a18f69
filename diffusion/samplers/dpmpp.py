"""DPM-Solver++(2M) and SDE-DPM-Solver++(2M), Lu et al. 2022: x_start extrapolated from the last two predictions."""

from __future__ import annotations

import numpy as np

from diffusion.process import Process
from diffusion.samplers.exponential_integrator import extrapolation, first_order, log_snr_steps
from diffusion.samplers.method import clipped_table
from diffusion.step_table import StepTable


def dpmpp_2m(process: Process, timesteps: np.ndarray) -> StepTable:
    """Second order, deterministic, extrapolates x_start from the last two predictions.

    The first and the last row are first order. A learned variance is not read.
    """
    return clipped_table("dpmpp_2m", process, timesteps, dpmpp_2m_columns, histories=1)


def dpmpp_2m_columns(alpha_bar: np.ndarray, alpha_bar_prev: np.ndarray) -> dict[str, np.ndarray]:
    """a, b, c1 and f for rows from ᾱ to ᾱ′, float64 [R] each; h1 is the last x_start."""
    of_x, of_x_start = first_order(alpha_bar, alpha_bar_prev)
    kappa = extrapolation(*log_snr_steps(alpha_bar, alpha_bar_prev))
    # Lu et al. 2022 (DPM-Solver++), algorithm 2: D = (1 + κ)·x_start − κ·(the last x_start), x' = A·x + B·D
    return {"a": of_x, "b": of_x_start * (1.0 + kappa), "c1": -of_x_start * kappa, "f": np.ones_like(of_x)}


def dpmpp_sde_2m(process: Process, timesteps: np.ndarray) -> StepTable:
    """Second order with noise: ddpm with fixed_small whose x_start is extrapolated as in dpmpp_2m.

    The first and the last row are first order, which is ddpm. The variance is β̃ whatever the process's, and a
    learned one is not read.
    """
    return clipped_table("dpmpp_sde_2m", process, timesteps, dpmpp_sde_2m_columns, histories=1)


def dpmpp_sde_2m_columns(alpha_bar: np.ndarray, alpha_bar_prev: np.ndarray) -> dict[str, np.ndarray]:
    """a, b, c1, s and f for rows from ᾱ to ᾱ′, float64 [R] each; h1 is the last x_start."""
    alpha = alpha_bar / alpha_bar_prev
    beta = 1.0 - alpha
    # Lu et al. 2022 (DPM-Solver++), section 5, is written with e^−h = √(ᾱ(1−ᾱ′)/(ᾱ′(1−ᾱ))) and σ = √(1−ᾱ). Its
    # σ′/σ·e^−h, √ᾱ′(1−e^−2h) and σ′√(1−e^−2h) are the posterior's of Ho et al. 2020, eq. 7.
    of_x = np.sqrt(alpha) * (1.0 - alpha_bar_prev) / (1.0 - alpha_bar)
    of_x_start = np.sqrt(alpha_bar_prev) * beta / (1.0 - alpha_bar)
    noise_std = np.sqrt(beta * (1.0 - alpha_bar_prev) / (1.0 - alpha_bar))
    kappa = extrapolation(*log_snr_steps(alpha_bar, alpha_bar_prev))
    return {
        "a": of_x,
        "b": of_x_start * (1.0 + kappa),
        "c1": -of_x_start * kappa,
        "s": noise_std,
        "f": np.ones_like(of_x),
    }
