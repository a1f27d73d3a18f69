"""Weights of the squared error by timestep: what makes a loss of ‖target − prediction‖².

With x_start = u·x_t + v·prediction, ‖x_0 − x̂_0‖² = v²·‖target − prediction‖²: a weight that is known for one
prediction type is known for all.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from diffusion.prediction import x_start_coefficients
from diffusion.process import Process

DEFAULT_MIN_SNR_GAMMA = 5.0


def weights_simple(process: Process, min_snr_gamma: float) -> np.ndarray:
    """1 for epsilon, sample and v_prediction (Ho et al. 2020, eq. 14: L_simple), 1 − ᾱ_t for score; float64 [T].

    The score is −eps/√(1 − ᾱ_t), up to a hundred times as large at t = 0 as at T−1. Weighted by 1 − ᾱ_t, as
    Song & Ermon 2019, section 4.2, weight by σ², its squared error is that of epsilon, term by term.
    """
    if process.prediction_type == "score":
        return 1.0 - process.schedule.alpha_bar
    return np.ones(process.schedule.num_train_timesteps)


def weights_min_snr(process: Process, min_snr_gamma: float) -> np.ndarray:
    """min(SNR_t, γ) on ‖x_0 − x̂_0‖² (Hang et al. 2023, section 3.4), float64 [T].

    On the prediction's own error that is min(SNR, γ)/SNR for epsilon, min(SNR, γ) for sample, min(SNR, γ)/(SNR + 1) for
    v_prediction, and epsilon's weight times 1 − ᾱ for score: the same loss whatever is predicted. Where nothing is
    left of the data it would be 0 and the network never trained at the timestep that sampling starts from:
    there the weight is 1.
    """
    schedule = process.schedule
    weights = np.minimum(schedule.snr, min_snr_gamma) * x_start_error_scale(process)
    return np.where(schedule.snr == 0.0, 1.0, weights)


WEIGHTS: dict[str, Callable[[Process, float], np.ndarray]] = {"simple": weights_simple, "min-snr": weights_min_snr}


def x_start_error_scale(process: Process) -> np.ndarray:
    """v², float64 [T]: from the prediction's squared error to that of x_start."""
    _, v = x_start_coefficients(process.prediction_type, process.schedule.alpha_bar)
    return np.square(v)
