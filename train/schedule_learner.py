"""Learning the noise schedule beside the network: the one under which the bound's terms are most alike.

For a network that has kept up, the error of eps is a function of λ = ln SNR alone, whatever timestep it came with
(Kingma et al. 2021, section 5). So its second moment is collected by λ, and the monotone network for λ_t follows the
gradient of the bound's second moment through that table. The bound itself hardly depends on the way from the first λ
to the last one: what falls is its variance over t. Kingma et al. 2021 take that gradient through the
denoising network instead, which costs another pass and is far noisier.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from diffusion.noise_schedule import NoiseSchedule

_HIDDEN = 32
# At the start each hidden unit rises over about a tenth of the timesteps, and all of them by a third of the whole.
_SHARPNESS, _SHARE = 30.0, 1.0 / 3.0
# Parts of the run: before, the network knows too little; after, it settles on a schedule that stays.
LEARN_FROM, LEARN_UNTIL = 0.1, 0.5
# Steps of training between changes of the schedule, and its own steps at each of them.
CHANGE_EVERY, UPDATES_PER_CHANGE = 10, 10
_LEARNING_RATE = 0.02
_NUM_BINS = 64
# Per change: the table remembers about a hundred steps of training.
_DECAY = 0.9


class LogSnrNetwork(torch.nn.Module):
    """λ_t = ln SNR_t, strictly falling in t from one given end to the other, float64.

    SNR_t = exp(−ω(t)) with ω monotone (Luo 2022, eq. 111). As in Kingma et al. 2021, appendix H, ω is a line plus a
    hidden layer of logistic units whose weights are positive, and is then scaled to its ends. At the start λ is nearly
    linear in t. The initialization is not random.

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
        """The current noise schedule, β by β."""
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


class ScheduleLearner:
    """A noise schedule between the ends of a given one, and what it learns from. The same in every process.

    Args:
        accelerator: an `accelerate.Accelerator`, whose processes share what they see.
        base: gives T, at least 3, and the ends, both finite.
        steps: of the whole run.
    """

    def __init__(self, accelerator: Any, base: NoiseSchedule, steps: int) -> None:
        self._accelerator, self._base = accelerator, base
        self._first_step, self._last_step = int(LEARN_FROM * steps), int(LEARN_UNTIL * steps)
        first, last = float(base.log_snr[0]), float(base.log_snr[-1])
        self._network = LogSnrNetwork(first, last, base.num_train_timesteps)
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=_LEARNING_RATE)
        edges = np.linspace(last, first, _NUM_BINS + 1)
        self._inner_edges = edges[1:-1]
        self._lowest, self._width = float(0.5 * (edges[0] + edges[1])), float(edges[1] - edges[0])
        # Row 0: how many errors were seen in each bin of λ; row 1: the sum of their squares.
        self._moments = torch.zeros(2, _NUM_BINS, dtype=torch.float64)
        self._new_moments = torch.zeros_like(self._moments, device=accelerator.device)
        self._set_schedule()

    @property
    def schedule(self) -> NoiseSchedule:
        """The schedule to train with now."""
        return self._schedule

    def is_learning(self, step: int) -> bool:
        """Whether update number `step` of the network, counted from 0, may change the schedule."""
        return self._first_step <= step < self._last_step

    def update(self, step: int, timesteps: torch.Tensor, eps_errors: torch.Tensor) -> bool:
        """Take in what update `step` of the network saw; whether the schedule changed.

        Args:
            step: counted from 0.
            timesteps: int64 [N], on the device.
            eps_errors: [N], the mean square of eps − ε̂ of each sample.
        """
        if not self.is_learning(step):
            return False
        # As a matrix product, whose sums have a fixed order on every device.
        places = torch.nn.functional.one_hot(self._bins[timesteps], _NUM_BINS).double()  # [N, bins]
        errors = eps_errors.double()
        seen = torch.stack([torch.ones_like(errors), errors.square()]) @ places
        self._new_moments += self._accelerator.reduce(seen, reduction="sum")
        if (step + 1 - self._first_step) % CHANGE_EVERY:
            return False
        self._moments = _DECAY * self._moments + self._new_moments.cpu()
        self._new_moments.zero_()
        root = self._root_second_moment()
        for _ in range(UPDATES_PER_CHANGE):
            self._optimizer.zero_grad(set_to_none=True)
            self._log_second_moment(self._network(), root).backward()
            self._optimizer.step()
        self._set_schedule()
        return True

    def relative_std(self) -> dict[str, float] | None:
        """How much the bound's terms scatter over t, as standard deviation over mean; from the errors seen.

        Returns:
            `given` for the schedule whose ends are kept, and `learned`; None if nothing was seen, or nothing finite.
        """
        if not self._moments[0].any():
            return None
        root = self._root_second_moment()
        found = {}
        for name, schedule in (("given", self._base), ("learned", self._schedule)):
            terms = self._terms(torch.from_numpy(schedule.log_snr.copy()), root)
            found[name] = float(terms.std(correction=0) / terms.mean())
        return found if all(math.isfinite(value) for value in found.values()) else None

    def state(self) -> dict[str, Any]:
        """Everything that the next update depends on, as tensors and plain values."""
        return {
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "moments": self._moments,
            "new_moments": self._new_moments,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._moments = state["moments"].clone()
        self._new_moments = state["new_moments"].to(self._new_moments.device, copy=True)
        self._set_schedule()

    def _set_schedule(self) -> None:
        self._schedule = self._network.schedule()
        bins = np.digitize(self._schedule.log_snr, self._inner_edges)  # [T], 0 … _NUM_BINS − 1
        self._bins = torch.from_numpy(bins).to(self._accelerator.device)

    def _root_second_moment(self) -> torch.Tensor:
        """√E[error²] at the middle of each bin, float64 [bins]; bins that saw nothing lie between their neighbours."""
        count, total = self._moments.numpy()
        kernel = np.array([0.25, 0.5, 0.25])  # the error is a smooth function of λ, the sums are noisy
        count, total = (np.convolve(np.pad(sums, 1, mode="edge"), kernel, mode="valid") for sums in (count, total))
        seen = np.flatnonzero(count > 0.0)
        filled = np.interp(np.arange(_NUM_BINS), seen, np.sqrt(total[seen] / count[seen]))
        return torch.from_numpy(filled)

    def _terms(self, log_snr: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
        """L_t of t = 1 … T−1 per dimension, from the typical error at λ_t, float64 [T − 1].

        ½(SNR_{t−1} − SNR_t)·‖x_0 − x̂_0‖² (Luo 2022, eq. 110) = ½(exp(λ_{t−1} − λ_t) − 1)·‖ε − ε̂‖².
        """
        place = ((log_snr[1:] - self._lowest) / self._width).clamp(0.0, _NUM_BINS - 1.0)
        below = place.detach().floor().clamp(max=_NUM_BINS - 2.0)
        left, right = root[below.long()], root[below.long() + 1]
        error = left + (right - left) * (place - below)
        return 0.5 * torch.expm1(log_snr[:-1] - log_snr[1:]) * error

    def _log_second_moment(self, log_snr: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
        # The mean is nearly fixed, so the least second moment is the least variance; its logarithm has no scale.
        return self._terms(log_snr, root).square().mean().log()
