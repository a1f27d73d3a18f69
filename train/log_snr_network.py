"""A monotone network for the logarithm of the signal-to-noise ratio: a noise schedule with parameters."""

from __future__ import annotations

import math

import numpy as np
import torch

from diffusion.noise_schedule import NoiseSchedule

_HIDDEN = 32
# At the start each hidden unit rises over about a tenth of the timesteps, and all of them by a third of the whole.
_SHARPNESS, _SHARE = 30.0, 1.0 / 3.0


class LogSnrNetwork(torch.nn.Module):
    """λ_t = ln SNR_t, strictly falling in t from one given end to the other, float64.

    SNR_t = exp(−ω(t)) with ω monotone (Luo 2022, eq. 111). As in Kingma et al. 2021, appendix H, ω is a line plus a
    hidden layer of logistic units whose weights are positive, and is then scaled to its ends. At the start λ is nearly
    linear in t. Nothing here is random.

    Args:
        first, last: λ of timesteps 0 and T−1.
        num_timesteps: T, at least 2.
    """

    def __init__(self, first: float, last: float, num_timesteps: int) -> None:
        super().__init__()
        self._first, self._last = first, last
        self._places = torch.linspace(0.0, 1.0, num_timesteps, dtype=torch.float64)
        centres = (torch.arange(_HIDDEN, dtype=torch.float64) + 0.5) / _HIDDEN
        self.slope = torch.nn.Parameter(torch.tensor(_inverse_softplus(1.0 - _SHARE), dtype=torch.float64))
        self.heights = torch.nn.Parameter(torch.full_like(centres, _inverse_softplus(_SHARE / _HIDDEN)))
        self.sharpness = torch.nn.Parameter(torch.full_like(centres, _inverse_softplus(_SHARPNESS)))
        self.centres = torch.nn.Parameter(centres)

    def forward(self) -> torch.Tensor:
        """λ of every timestep, float64 [T]."""
        positive = torch.nn.functional.softplus
        units = torch.sigmoid(positive(self.sharpness) * (self._places[:, None] - self.centres))  # [T, hidden]
        risen = positive(self.slope) * self._places + units @ positive(self.heights)
        share = (risen - risen[0]) / (risen[-1] - risen[0])
        return self._first + (self._last - self._first) * share

    def schedule(self) -> NoiseSchedule:
        """The noise schedule of now, β by β."""
        with torch.no_grad():
            return schedule_from_log_snr(self().numpy())


def schedule_from_log_snr(log_snr: np.ndarray) -> NoiseSchedule:
    """The schedule with λ_t = ln(ᾱ_t/(1 − ᾱ_t)): ᾱ = sigmoid(λ) (Luo 2022, eq. 113), β_t = 1 − ᾱ_t/ᾱ_{t−1}.

    Args:
        log_snr: float64 [T], finite, strictly falling.

    Raises:
        InputError: it does not fall, or so little that float64 cannot tell.
    """
    log_alpha_bar = -np.logaddexp(0.0, -log_snr)
    return NoiseSchedule.explicit(-np.expm1(np.diff(log_alpha_bar, prepend=0.0)))


def _inverse_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value))
