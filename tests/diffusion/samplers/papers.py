"""The multistep methods as their papers write them: float64, each in its own variables, one step after the other.

Nothing here is a row or comes from one. Integrals are Gauss-Legendre quadrature, the small systems are solved as they
stand. A λ of ±∞, at ᾱ = 0 and at data, is IEEE's infinity, which the papers' formulas take as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diffusion.normal import draw_number, normal_batch
from diffusion.process import Process

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)


def integrate(function: Callable[[np.ndarray], np.ndarray], start: float, end: float) -> float:
    """∫ over [start, end], to about 1e-15 for what is as smooth as a polynomial times e^y."""
    half = 0.5 * (end - start)
    return float(half * np.sum(_WEIGHTS * function(start + half * (1.0 + _NODES))))


class Chain:
    """What every method needs: α, σ and λ of each point, the last being data, and the clipped x_start.

    Args:
        process: schedule, prediction type and clip.
        timesteps: R, descending.
        predict: the network.
        seed: of the noise of samples 0..N−1.
    """

    def __init__(self, process: Process, timesteps: Sequence[int], predict: Predict, seed: int = 0) -> None:
        alpha_bar = np.append(process.schedule.alpha_bar[list(timesteps)], 1.0)
        self.alpha, self.sigma = np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar)
        with np.errstate(divide="ignore"):
            self.lam = np.log(self.alpha / self.sigma)
        self.rows = range(len(timesteps))
        self._process, self._timesteps, self._predict, self._seed = process, timesteps, predict, seed

    def is_last(self, row: int) -> bool:
        return row == self.rows[-1]

    def x_start(self, row: int, x: np.ndarray) -> np.ndarray:
        """Ho et al. 2020, eq. 15, for epsilon; Salimans & Ho 2022, section 4, for v."""
        said = self._predict(x, np.full(len(x), self._timesteps[row]))
        alpha, sigma = self.alpha[row], self.sigma[row]
        x_start = {
            "epsilon": lambda: (x - sigma * said) / alpha,
            "sample": lambda: said,
            "v_prediction": lambda: alpha * x - sigma * said,
        }[self._process.prediction_type]()
        clip = self._process.clip_sample
        return x_start if clip is None else np.clip(x_start, -clip, clip)

    def noise(self, row: int, x: np.ndarray) -> np.ndarray:
        draws = [draw_number(int(self._timesteps[row]))] * len(x)
        return normal_batch(x.shape[1:], [self._seed] * len(x), list(range(len(x))), draws)


def _extrapolated(chain: Chain, row: int, seen: list[np.ndarray]) -> np.ndarray:
    """D of Lu et al. 2022 (DPM-Solver++), algorithm 2: first order in the first and the last row."""
    if row == 0 or chain.is_last(row):
        return seen[-1]
    h, h_prev = chain.lam[row + 1] - chain.lam[row], chain.lam[row] - chain.lam[row - 1]
    r = h_prev / h
    return (1 + 1 / (2 * r)) * seen[-1] - 1 / (2 * r) * seen[-2]


def dpmpp_2m(chain: Chain, x: np.ndarray) -> np.ndarray:
    """Lu et al. 2022 (DPM-Solver++), algorithm 2."""
    seen: list[np.ndarray] = []
    for row in chain.rows:
        seen.append(chain.x_start(row, x))
        h = chain.lam[row + 1] - chain.lam[row]
        d = _extrapolated(chain, row, seen)
        x = chain.sigma[row + 1] / chain.sigma[row] * x - chain.alpha[row + 1] * np.expm1(-h) * d
    return x


def dpmpp_sde_2m(chain: Chain, x: np.ndarray) -> np.ndarray:
    """Lu et al. 2022 (DPM-Solver++), section 5: SDE-DPM-Solver++(2M)."""
    seen: list[np.ndarray] = []
    for row in chain.rows:
        seen.append(chain.x_start(row, x))
        h = chain.lam[row + 1] - chain.lam[row]
        alpha, sigma = chain.alpha[row + 1], chain.sigma[row + 1]
        kept = sigma / chain.sigma[row] * np.exp(-h) * x
        moved = -alpha * np.expm1(-2 * h) * _extrapolated(chain, row, seen)
        x = kept + moved + sigma * np.sqrt(-np.expm1(-2 * h)) * chain.noise(row, x)
    return x


def deis(chain: Chain, x: np.ndarray, order: int = 2) -> np.ndarray:
    """Zhang & Chen 2023, eqs. 14 and 15: x/α moves by ∫ eps dρ, ρ = σ/α, eps a polynomial in ln ρ = −λ."""
    seen: list[tuple[float, np.ndarray]] = []  # (ln ρ, eps), the latest first
    for row in chain.rows:
        alpha, sigma = chain.alpha[row], chain.sigma[row]
        x_start = chain.x_start(row, x)
        eps = (x - alpha * x_start) / sigma
        if chain.is_last(row):
            return x_start
        if alpha == 0:  # ρ = ∞: the integral of a constant eps is DDIM's step, and no polynomial passes through there
            x = chain.alpha[row + 1] * x_start + chain.sigma[row + 1] * eps
            continue
        seen = [(-chain.lam[row], eps), *seen][:order]
        places = [place for place, _ in seen]

        def basis(y: np.ndarray, j: int, places: list[float] = places) -> np.ndarray:
            others = [place for place in places if place != places[j]]
            return np.prod([(y - place) / (places[j] - place) for place in others] or [np.ones_like(y)], axis=0)

        ends = -chain.lam[row], -chain.lam[row + 1]
        if len(seen) == 1:  # no need of quadrature, whose last digits x/α would magnify
            moved = (chain.sigma[row + 1] / chain.alpha[row + 1] - sigma / alpha) * eps
        else:  # dρ = e^y dy with y = ln ρ
            moved = sum(
                integrate(lambda y, j=j: basis(y, j) * np.exp(y), *ends) * value for j, (_, value) in enumerate(seen)
            )
        x = chain.alpha[row + 1] * (x / alpha + moved)
    raise AssertionError("no rows")


def deis_3(chain: Chain, x: np.ndarray) -> np.ndarray:
    """As `deis` with three points."""
    return deis(chain, x, order=3)


def unipc(chain: Chain, x: np.ndarray) -> np.ndarray:
    """Zhao et al. 2023, algorithms 1 and 2 for a prediction of data, p = 2, B(h) = e^h − 1 at −h."""
    seen: list[np.ndarray] = []
    corrected = x
    for row in chain.rows:
        seen.append(chain.x_start(row, x))
        if row > 0:
            corrected = _unified_corrector(chain, row, corrected, seen)
        if chain.is_last(row):
            return seen[-1]
        h = chain.lam[row + 1] - chain.lam[row]
        b_h = np.expm1(-h)
        x = chain.sigma[row + 1] / chain.sigma[row] * corrected - chain.alpha[row + 1] * b_h * seen[-1]
        if row > 0:
            r = (chain.lam[row - 1] - chain.lam[row]) / h
            x = x - chain.alpha[row + 1] * b_h * 0.5 * (seen[-2] - seen[-1]) / r
    raise AssertionError("no rows")


def _unified_corrector(chain: Chain, row: int, corrected: np.ndarray, seen: list[np.ndarray]) -> np.ndarray:
    """The state at `row` again, from the corrected one before it and what the network has just said here."""
    h = chain.lam[row] - chain.lam[row - 1]
    b_h = np.expm1(-h)
    x = chain.sigma[row] / chain.sigma[row - 1] * corrected - chain.alpha[row] * b_h * seen[-2]
    here = seen[-1] - seen[-2]
    if row == 1:
        return x - chain.alpha[row] * b_h * 0.5 * here
    # Σ ρ_m r_m^(k−1) = b_k makes the step exact for x_start = s^k, s from 0 to 1 along it:
    # −B·b_k = h ∫ e^(−(1−s)h) s^k ds.
    b_1, b_2 = (integrate(lambda s, k=k: h * np.exp(-(1 - s) * h) * s**k, 0.0, 1.0) / -b_h for k in (1, 2))
    r = (chain.lam[row - 2] - chain.lam[row - 1]) / h
    if np.isinf(r):  # a point infinitely far away says nothing
        return x - chain.alpha[row] * b_h * b_1 * here
    rho = np.linalg.solve([[1.0, 1.0], [r, 1.0]], [b_1, b_2])
    return x - chain.alpha[row] * b_h * (rho[0] * (seen[-3] - seen[-2]) / r + rho[1] * here)


METHODS = {each.__name__: each for each in (dpmpp_2m, dpmpp_sde_2m, deis, deis_3, unipc)}
