"""DEIS, Zhang & Chen 2023: eps extrapolated as a polynomial in ln ρ, its integral over ρ = √((1−ᾱ)/ᾱ) exact."""

from __future__ import annotations

from functools import partial

import numpy as np

from diffusion.process import Process
from diffusion.samplers.exponential_integrator import first_order, log_snr_steps, phi
from diffusion.samplers.method import clipped_table
from diffusion.step_table import StepTable


def deis(process: Process, timesteps: np.ndarray) -> StepTable:
    """Second order, deterministic, extrapolates eps from the last two predictions.

    The first and the last row are first order. A learned variance is not read.
    """
    return clipped_table("deis", process, timesteps, deis_columns, histories=1)


def deis_3(process: Process, timesteps: np.ndarray) -> StepTable:
    """As deis from the last three predictions: its inner rows are third order, exact for eps quadratic in ln ρ.

    The first and the last row are first order, the second row second: with many steps the error of the last row, which
    falls as N⁻², is what is left. A learned variance is not read.
    """
    return clipped_table("deis_3", process, timesteps, partial(deis_columns, order=3), histories=2)


def deis_columns(alpha_bar: np.ndarray, alpha_bar_prev: np.ndarray, order: int = 2) -> dict[str, np.ndarray]:
    """a, b, c1, c2, d and f for rows from ᾱ to ᾱ′, float64 [R] each; h1 and h2 are the last two eps.

    Zhang & Chen 2023, eqs. 14 and 15 in ρ: x'/√ᾱ′ = x/√ᾱ + C_0·eps + C_1·h1 + C_2·h2 with C_j = ∫_ρ^ρ′ ℓ_j(ln r) dr.
    The three ℓ_j sum to 1, so C_0 = ρ′ − ρ − C_1 − C_2. With eps = (x − √ᾱ·x_start)/√(1−ᾱ), the first part is the
    first-order step, and only C_1 and C_2 are left to add: 1/√ᾱ, huge at the noisy end, has cancelled on paper.
    """
    of_x, of_x_start = first_order(alpha_bar, alpha_bar_prev)
    of_h1, of_h2 = _history_weights(alpha_bar, alpha_bar_prev, order)  # √ᾱ′·C_1, √ᾱ′·C_2
    signal, noise = np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar)
    columns = {
        "a": of_x - (of_h1 + of_h2) / noise,
        "b": of_x_start + (of_h1 + of_h2) * signal / noise,
        "c1": of_h1,
        "d": 1.0 / noise,
        "f": -signal / noise,
    }
    return columns if order == 2 else columns | {"c2": of_h2}


def _history_weights(alpha_bar: np.ndarray, alpha_bar_prev: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """√ᾱ′·C_1 and √ᾱ′·C_2, float64 [R] each; 0 in the rows that have no such point, and in the last.

    With y = ln(r/ρ), which is 0 at the row, y_1 = h_prev and y_2 at the two rows before it, and −h at the next,
    C_j = ρ ∫_0^−h ℓ_j(y) e^y dy: what is needed are the moments M_n = ∫_0^−h yⁿ e^y dy. A point at ᾱ = 0, where y = ∞,
    drops out: what is left is one order lower.
    """
    h, h_prev = log_snr_steps(alpha_bar, alpha_bar_prev)
    of_h1, of_h2 = np.zeros_like(h), np.zeros_like(h)
    inner = np.arange(1, len(h) - 1)
    scale = np.sqrt(alpha_bar_prev[inner] * (1.0 - alpha_bar[inner]) / alpha_bar[inner])  # √ᾱ′·ρ
    z, y_1 = -h[inner], h_prev[inner]
    moment_1 = z**2 * (phi(1, z) - phi(2, z))
    of_h1[inner] = scale * moment_1 / y_1  # two points: ℓ_1 = y/y_1
    y_2 = y_1 + h_prev[inner - 1]
    three = np.isfinite(y_2)  # not so in the second row, whose y_2 is the ∞ before the first
    if order == 3 and three.any():
        inner, scale, moment_1, z, y_1, y_2 = (each[three] for each in (inner, scale, moment_1, z, y_1, y_2))
        moment_2 = z**3 * (phi(1, z) - 2.0 * phi(2, z) + 2.0 * phi(3, z))
        # ℓ_1 = y(y − y_2)/(y_1(y_1 − y_2)), ℓ_2 = y(y − y_1)/(y_2(y_2 − y_1))
        of_h1[inner] = scale * (moment_2 - y_2 * moment_1) / (y_1 * (y_1 - y_2))
        of_h2[inner] = scale * (moment_2 - y_1 * moment_1) / (y_2 * (y_2 - y_1))
    return of_h1, of_h2
