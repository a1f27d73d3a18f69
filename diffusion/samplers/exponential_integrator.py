"""What the deterministic samplers share: the exact part of a step in λ = ½ ln(ᾱ/(1−ᾱ)), and integrals of exponentials.

Between two timesteps the probability-flow equation has the solution (Lu et al. 2022, DPM-Solver++, proposition 4.1)

    x' = A·x + √(1−ᾱ′) ∫ e^λ x_start(λ) dλ,    A = √((1−ᾱ′)/(1−ᾱ)),

and only x_start under the integral is approximated. Rows are in the order of the chain: ᾱ of the row, ᾱ′ of the next.
Everything here takes arrays of ᾱ, of training timesteps or not, and is finite at ᾱ = 0 (λ = −∞) and at ᾱ′ = 1 (λ = ∞).
"""

from __future__ import annotations

import math

import numpy as np

# Of `extrapolation`: with T = 1,000 and 3 to 1,000 steps of the four schedules' defaults, the spacings reach 2.5, and
# logsnr of a cosine schedule 4.4.
MAX_EXTRAPOLATION = 5.0


def first_order(alpha_bar: np.ndarray, alpha_bar_prev: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(A, B) of x' = A·x + B·x_start, exact where x_start does not change: DDIM (Song et al. 2021, eq. 12, σ = 0).

    B = √ᾱ′ (1 − e^−h) = √ᾱ′ − A√ᾱ, the form that holds at both ends.
    """
    of_x = np.sqrt((1.0 - alpha_bar_prev) / (1.0 - alpha_bar))
    return of_x, np.sqrt(alpha_bar_prev) - of_x * np.sqrt(alpha_bar)


def log_snr_steps(alpha_bar: np.ndarray, alpha_bar_prev: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(h, h_prev), float64 [R] each: h = λ′ − λ of every row, and of the row before it.

    The first row has no row before it: its h_prev is ∞, which is also the limit where that row stands at ᾱ = 0.
    An h may be ∞ in the first row (ᾱ = 0) and in the last (ᾱ′ = 1).
    """
    h = half_log_snr(alpha_bar_prev) - half_log_snr(alpha_bar)
    return h, np.concatenate([[np.inf], h[:-1]])


def half_log_snr(alpha_bar: np.ndarray) -> np.ndarray:
    """λ = ½ ln(ᾱ/(1−ᾱ)) of Lu et al. 2022 (DPM-Solver), section 3.1; −∞ at ᾱ = 0, ∞ at ᾱ = 1."""
    with np.errstate(divide="ignore"):
        return 0.5 * (np.log(alpha_bar) - np.log1p(-alpha_bar))


def extrapolation(h: np.ndarray, h_prev: np.ndarray) -> np.ndarray:
    """κ = h/(2 h_prev): how far x_start is extrapolated along its last difference, to the middle of the step in λ.

    Algorithm 2 of Lu et al. 2022 (DPM-Solver++), whose 1/(2r) this is. 0 in the first row, which has nothing to
    extrapolate from, and in the last, whose step ends at λ = ∞ or is kept to first order.
    """
    kappa = np.zeros_like(h)
    kappa[1:-1] = h[1:-1] / (2.0 * h_prev[1:-1])
    return kappa


def extrapolation_note(alpha_bar: np.ndarray, timesteps: np.ndarray) -> str | None:
    """A note on timesteps that extrapolate x_start very far along its last difference, which multiplies its error.

    The spacings of the usual schedules stay below `MAX_EXTRAPOLATION`; a user's choice may not.

    Args:
        alpha_bar: float64 [R], of the rows.
        timesteps: int64 [R].
    """
    h, h_prev = log_snr_steps(alpha_bar, np.append(alpha_bar[1:], 1.0))
    kappa = extrapolation(h, h_prev)
    row = int(kappa.argmax())
    if kappa[row] <= MAX_EXTRAPOLATION:
        return None
    return (
        f"the step from timestep {timesteps[row]} to {timesteps[row + 1]} is {2.0 * kappa[row]:.3g} times the one "
        "before it in log-SNR: x_start is extrapolated that far, and its error with it"
    )


def phi(order: int, z: np.ndarray) -> np.ndarray:
    """φ_k(z) = (e^z − Σ_{j<k} z^j/j!)/z^k, φ_k(0) = 1/k!, for z ≤ 0, −∞ included, to about 1e-15 relative.

    Hochbruck & Ostermann 2010, eq. 2.10. Near 0 the closed form loses all its digits: a Taylor series is used there.
    """
    near = np.abs(z) < 1.0
    small = np.where(near, z, 0.0)
    series = np.zeros_like(small)
    for power in reversed(range(20)):  # Horner; the first term left out is below 1/20!
        series = series * small + 1.0 / math.factorial(power + order)
    large = np.where(near, -1.0, z)
    # φ_0 = e^z and φ_{k+1} = (φ_k − 1/k!)/z, which is stable away from 0 and 0 at −∞.
    closed = np.exp(large)
    for below in range(order):
        closed = (closed - 1.0 / math.factorial(below)) / large
    return np.where(near, series, closed)
