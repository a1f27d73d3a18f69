"""DPM-Solver++(2M), Lu et al. 2022: two predictions of x_start per step, the last one remembered."""

from __future__ import annotations

import numpy as np

from diffusion.prediction import x_start_coefficients
from diffusion.process import Process
from diffusion.samplers.exponential_integrator import extrapolation, first_order, log_snr_steps
from diffusion.step_table import StepTable, rows_alpha_bar


def dpmpp_2m(process: Process, timesteps: np.ndarray) -> StepTable:
    """Second order, deterministic, extrapolates x_start from the last two predictions.

    The first and the last row are first order. A learned variance is not read.
    """
    alpha_bar, alpha_bar_prev = rows_alpha_bar(process.schedule.alpha_bar, timesteps)
    u, v = x_start_coefficients(process.prediction_type, alpha_bar)
    columns = dpmpp_2m_columns(alpha_bar, alpha_bar_prev)
    clip = np.inf if process.clip_sample is None else process.clip_sample
    return StepTable.from_columns("dpmpp_2m", timesteps, {"u": u, "v": v, **columns}, clip=clip, histories=1)


def dpmpp_2m_columns(alpha_bar: np.ndarray, alpha_bar_prev: np.ndarray) -> dict[str, np.ndarray]:
    """a, b, c1 and f for rows from ᾱ to ᾱ′, float64 [R] each; h1 is the last x_start."""
    of_x, of_x_start = first_order(alpha_bar, alpha_bar_prev)
    kappa = extrapolation(*log_snr_steps(alpha_bar, alpha_bar_prev))
    # Lu et al. 2022 (DPM-Solver++), algorithm 2: D = (1 + κ)·x_start − κ·(the last x_start), x' = A·x + B·D
    return {"a": of_x, "b": of_x_start * (1.0 + kappa), "c1": -of_x_start * kappa, "f": np.ones_like(of_x)}
