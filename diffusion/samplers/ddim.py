"""DDIM, Song et al. 2021: the same marginals as DDPM with as much noise per step as wanted, or none; and its inversion.

The inversion (section 4.3) runs from an image up to the noise that DDIM would make it from.
"""

from __future__ import annotations

import math

import numpy as np

from diffusion.errors import InputError
from diffusion.prediction import eps_coefficients, x_start_coefficients
from diffusion.process import Process
from diffusion.step_table import StepTable, rows_alpha_bar


def ddim(
    process: Process, timesteps: np.ndarray, *, eta: float = 0.0, use_clipped_model_output: bool = True
) -> StepTable:
    """First order; eta scales its noise: 0 is deterministic, 1 is ddpm with fixed_small.

    A learned variance is not read.

    Args:
        process: what the network was trained on.
        timesteps: int64 [R], strictly descending.
        eta: η of Song et al. 2021, eq. 16; from 0 to where a row's noise would exceed its variance.
        use_clipped_model_output: diffusers' name. True: the direction to x_t is taken from x and the clipped x_start,
            so that the pair always makes up x. False, diffusers' default: from the network's own prediction, though
            x_start beside it is clipped. Without a clip both are the same.

    Raises:
        InputError: an eta outside that range, which the message gives.
    """
    alpha_bar, alpha_bar_prev = rows_alpha_bar(process.schedule.alpha_bar, timesteps)
    u, v = x_start_coefficients(process.prediction_type, alpha_bar)
    columns = ddim_columns(alpha_bar, alpha_bar_prev, eta)
    if not use_clipped_model_output and process.clip_sample is not None:
        # x' = √ᾱ′·x_start + √(1−ᾱ′−σ²)·eps + σ·z with eps linear in x and the prediction, not in the clipped x_start
        direction = columns["a"] * np.sqrt(1.0 - alpha_bar)
        of_x, of_prediction = eps_coefficients(process.prediction_type, alpha_bar)
        columns |= {"a": direction * of_x, "q": direction * of_prediction, "b": np.sqrt(alpha_bar_prev)}
    clip = np.inf if process.clip_sample is None else process.clip_sample
    return StepTable.from_columns("ddim", timesteps, {"u": u, "v": v, **columns}, clip=clip)


def ddim_columns(alpha_bar: np.ndarray, alpha_bar_prev: np.ndarray, eta: float = 0.0) -> dict[str, np.ndarray]:
    """a, b and s for rows from ᾱ to ᾱ′, float64 [R] each. Raises InputError as `ddim`."""
    alpha = alpha_bar / alpha_bar_prev
    # With σ = η√β̃ (Song et al. 2021, eq. 16), 1 − ᾱ′ − σ² = (1−ᾱ′)·(1 − η²β/(1−ᾱ)). What is left of the bracket
    # at η = 1 is α(1−ᾱ′)/(1−ᾱ), written so because the difference itself cancels where ᾱ is small.
    left = alpha * (1.0 - alpha_bar_prev) / (1.0 - alpha_bar)
    noisy = alpha_bar_prev < 1.0
    largest = _largest_eta(left[noisy])
    if not 0.0 <= eta <= largest:
        raise InputError(f"eta is {eta}, expected 0 to {largest!r} for these timesteps")
    if not noisy.any():
        eta = 0.0  # there is no noise to scale
    bracket = (1.0 - eta) * (1.0 + eta) + eta**2 * left
    a = np.sqrt((1.0 - alpha_bar_prev) / (1.0 - alpha_bar) * np.where(noisy, bracket, 0.0))
    # Song et al. 2021, eq. 12: x' = √ᾱ′·x_start + √(1−ᾱ′−σ²)·(x − √ᾱ·x_start)/√(1−ᾱ) + σ·z
    b = np.sqrt(alpha_bar_prev) - a * np.sqrt(alpha_bar)
    s = eta * np.sqrt((1.0 - alpha) * (1.0 - alpha_bar_prev) / (1.0 - alpha_bar))
    return {"a": a, "b": b, "s": s}


def _largest_eta(left: np.ndarray) -> float:
    """η_max = min √((1−ᾱ)/β) = 1/√(1 − left), rounded down to six digits so that what a message says is allowed.

    A chain without a noisy row takes any finite η, for which the largest float stands.
    """
    if not left.size:
        return float(np.finfo(np.float64).max)
    return math.floor(1e6 / math.sqrt(1.0 - left.min())) / 1e6


def ddim_inversion(process: Process, timesteps: np.ndarray) -> StepTable:
    """The rows of `ddim(process, timesteps)`, eta = 0, run upwards: image in, x_T out.

    The table's timesteps ascend. The row of timestep t takes the state from the ᾱ′ that its row of `ddim` ends at
    (that of the next lower timestep; 1, data, for the lowest) back up to the ᾱ of t. Its network call is the one that
    cannot be made exactly: x_t is not known yet, so the network and x_start's (u, v) get t with the state below it.
    All else is exact, so that a chain up and then down again returns the image with an error of first order
    in the steps. A clip loses what it cuts off.

    Args:
        process: what the network was trained on.
        timesteps: int64 [R], strictly descending, as `ddim` takes them.

    Raises:
        InputError: timesteps that are not a strictly descending choice of 0..T−1.
    """
    alpha_bar, alpha_bar_prev = (rows[::-1] for rows in rows_alpha_bar(process.schedule.alpha_bar, timesteps))
    u, v = x_start_coefficients(process.prediction_type, alpha_bar)
    # Song et al. 2021, eq. 13, from ᾱ′ to ᾱ: x/√ᾱ = x'/√ᾱ′ + (ρ − ρ′)·eps, ρ = √((1−ᾱ)/ᾱ), times √ᾱ, which may be 0.
    growth = np.sqrt(alpha_bar / alpha_bar_prev)
    noise = np.sqrt(1.0 - alpha_bar)
    of_eps = noise - growth * np.sqrt(1.0 - alpha_bar_prev)
    # eps = (x' − √ᾱ·x_start)/√(1−ᾱ), from the clipped x_start as in `ddim`
    columns = {"u": u, "v": v, "a": growth + of_eps / noise, "b": -of_eps * np.sqrt(alpha_bar) / noise}
    clip = np.inf if process.clip_sample is None else process.clip_sample
    return StepTable.from_columns("ddim_inversion", np.asarray(timesteps)[::-1], columns, clip=clip)
