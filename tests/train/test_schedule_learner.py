"""The learned schedule on Gaussian data, where the error of eps is known for every signal-to-noise ratio."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.noise_schedule import NoiseSchedule
from train.schedule_learner import (
    CHANGE_EVERY,
    LEARN_FROM,
    LEARN_UNTIL,
    LogSnrNetwork,
    ScheduleLearner,
    schedule_from_log_snr,
)

BASE = NoiseSchedule.make("linear")
DATA_STD, NUM_ELEMENTS = 0.5, 64
ONE_PROCESS = SimpleNamespace(device=torch.device("cpu"), reduce=lambda tensor, reduction: tensor)


def test_ends_are_kept_and_the_start_is_nearly_linear() -> None:
    log_snr = LogSnrNetwork(9.0, -10.0, 1000)().detach().numpy()
    assert (log_snr[0], log_snr[-1]) == (9.0, -10.0)
    np.testing.assert_allclose(log_snr, np.linspace(9.0, -10.0, 1000), atol=0.2)


@pytest.mark.parametrize("seed", range(5))
def test_falls_whatever_the_parameters(seed: int) -> None:
    torch.manual_seed(seed)
    network = LogSnrNetwork(8.0, -12.0, 300)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 3.0 * torch.randn_like(parameter)
    log_snr = network().detach().numpy()
    assert (np.diff(log_snr) < 0).all()
    np.testing.assert_allclose(log_snr[[0, -1]], [8.0, -12.0], rtol=1e-14)
    np.testing.assert_allclose(network.schedule().log_snr, log_snr, atol=1e-8)


@pytest.mark.parametrize("kind", ["linear", "squaredcos_cap_v2"])
def test_schedule_and_log_snr_are_inverse(kind: str) -> None:
    schedule = NoiseSchedule.make(kind)
    again = schedule_from_log_snr(schedule.log_snr)
    assert again.kind == "explicit"
    np.testing.assert_allclose(again.betas, schedule.betas, rtol=1e-9)


def eps_error(log_snr: np.ndarray) -> np.ndarray:
    """E(eps − E[eps | x_t])² for data from N(0, DATA_STD²)."""
    return 1.0 / (1.0 + np.exp(-log_snr) / DATA_STD**2)


def terms(log_snr: np.ndarray) -> np.ndarray:
    """L_t of t = 1 … T−1, nats per dimension."""
    return 0.5 * np.expm1(-np.diff(log_snr)) * eps_error(log_snr[1:])


def train(learner: ScheduleLearner, start: int, stop: int) -> None:
    for step in range(start, stop):
        generator = np.random.default_rng(step)
        timesteps = generator.integers(BASE.num_train_timesteps, size=64)
        errors = eps_error(learner.schedule.log_snr[timesteps])
        errors = errors * generator.chisquare(NUM_ELEMENTS, 64) / NUM_ELEMENTS
        learner.update(step, torch.from_numpy(timesteps), torch.from_numpy(errors).float())


def test_the_terms_of_the_bound_become_alike() -> None:
    learner = ScheduleLearner(ONE_PROCESS, BASE, 1000)
    train(learner, 0, 1000)
    learned = learner.schedule.log_snr
    np.testing.assert_allclose(learned[[0, -1]], BASE.log_snr[[0, -1]], rtol=1e-9)
    even = np.linspace(learned[0], learned[-1], 1000)
    scatter = {
        name: terms(log_snr).std() / terms(log_snr).mean()
        for name, log_snr in (("given", BASE.log_snr), ("even", even), ("learned", learned))
    }
    assert scatter["given"] > 5.0
    assert scatter["even"] > 1.0
    assert scatter["learned"] < 0.25
    # The bound itself hardly moves, and not upwards.
    assert 0.85 * terms(BASE.log_snr).sum() < terms(learned).sum() < terms(BASE.log_snr).sum()
    # What it says of itself is what the closed form says.
    found = learner.relative_std()
    assert found is not None
    np.testing.assert_allclose([found["given"], found["learned"]], [scatter["given"], scatter["learned"]], rtol=0.1)
    # Terms are alike where the share of timesteps up to λ is that of ∫ error dλ: a softplus.
    share = np.logaddexp(0.0, learned + 2.0 * np.log(DATA_STD))
    share = (share[0] - share) / (share[0] - share[-1])
    np.testing.assert_allclose(share, np.linspace(0.0, 1.0, 1000), atol=0.07)


def test_state_goes_on_with_the_same_bits() -> None:
    whole, first = (ScheduleLearner(ONE_PROCESS, BASE, 300) for _ in range(2))
    train(whole, 0, 100)
    train(first, 0, 57)  # in the middle between two changes
    second = ScheduleLearner(ONE_PROCESS, BASE, 300)
    second.load_state(first.state())
    assert second.schedule == first.schedule
    train(second, 57, 100)
    assert second.schedule == whole.schedule
    assert second.schedule != first.schedule


def test_changes_in_its_part_of_the_run_alone() -> None:
    learner = ScheduleLearner(ONE_PROCESS, BASE, 200)
    start = learner.schedule
    assert learner.relative_std() is None
    timesteps, errors = torch.arange(64), torch.full((64,), 0.5)
    changed = [step for step in range(200) if learner.update(step, timesteps, errors)]
    assert changed == list(range(int(LEARN_FROM * 200) + CHANGE_EVERY - 1, int(LEARN_UNTIL * 200), CHANGE_EVERY))
    assert learner.schedule != start


def test_processes_share_what_they_see() -> None:
    """Two processes with half of the batch each learn what one learns from all of it."""

    class Doubled:
        device = torch.device("cpu")

        def reduce(self, tensor: Any, reduction: str) -> Any:
            assert reduction == "sum"
            return 2 * tensor

    two, one = ScheduleLearner(Doubled(), BASE, 200), ScheduleLearner(ONE_PROCESS, BASE, 200)
    timesteps, errors = torch.arange(0, 960, 30), torch.linspace(1.0, 0.01, 32)
    for step in range(40):
        two.update(step, timesteps, errors)
        one.update(step, timesteps.repeat(2), errors.repeat(2))
    assert two.schedule == one.schedule
