"""DDIM inversion, Song et al. 2021, section 4.3: from an image up to the noise that DDIM would make it from."""

from __future__ import annotations

import numpy as np

from diffusion.prediction import x_start_coefficients
from diffusion.process import Process
from diffusion.step_table import StepTable, rows_alpha_bar


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
