"""Whole fits of a network that is known exactly, where the best table of the family is known too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusion.errors import InputError
from diffusion.samplers import make_table
from tests.train.fitting.gaussian_fit import MEAN, PROCESS, STD, gaussian_network
from train.fitting.energy import EnergyDistance
from train.fitting.fit import Fit, FitConfig
from train.fitting.teacher import TeacherDistance

CONFIG = FitConfig(iterations=150, batch_size=32, learning_rate=0.03, free_timesteps=True)
DATA = torch.tensor(np.random.default_rng(1).normal(MEAN, STD, (600, 1, 2, 2)).astype(np.float32))


def test_two_calls_become_the_chain_of_twenty() -> None:
    """For Gaussian data x_0 is affine in x_T, and so within the family: the best table has no error at all."""
    network, start = gaussian_network(), make_table(PROCESS, "ddim", 2)
    objective = TeacherDistance(network, 64, 0.02)
    fit = Fit(network, objective, start, CONFIG)
    for _ in range(CONFIG.iterations):
        fit.advance()
    indices = range(10**6, 10**6 + 200)
    before, after = (
        objective.figures(network.sample(table, indices), indices)["distance to the teacher"]
        for table in (start, fit.table("fitted"))
    )
    assert before > 0.1
    assert after < 0.01


def test_two_calls_reach_the_data_by_energy_distance() -> None:
    """Not the flow, but its distribution: the same mean and deviation, up to what 600 images say of them."""
    network, start = gaussian_network(), make_table(PROCESS, "ddim", 2)
    fit = Fit(network, EnergyDistance(DATA, None, None, "pixels", 0), start, replace(CONFIG, batch_size=64))
    for _ in range(CONFIG.iterations):
        fit.advance()
    indices = range(10**6, 10**6 + 500)
    before, after = (network.sample(table, indices) for table in (start, fit.table("fitted")))
    assert abs(float(before.std()) - STD) > 0.1
    assert abs(float(after.std()) - STD) < 0.03
    assert abs(float(after.mean()) - MEAN) < 0.03


@pytest.mark.parametrize("objective", ["teacher", "data"])
@pytest.mark.parametrize("cut", [1, 6])
def test_a_fit_that_was_cut_goes_on_with_the_same_bits(objective: str, cut: int) -> None:
    def make() -> Fit:
        network = gaussian_network()
        of_teacher = objective == "teacher"
        goal = TeacherDistance(network, 16, 0.02) if of_teacher else EnergyDistance(DATA[:40], None, None, "pixels", 0)
        config = FitConfig(iterations=8, batch_size=8, learning_rate=0.03, free_timesteps=True)
        return Fit(network, goal, make_table(PROCESS, "dpmpp_2m", 3), config)

    whole, first, second = make(), make(), make()
    for _ in range(8):
        whole.advance()
    for _ in range(cut):
        first.advance()
    second.load_state(first.state())
    for _ in range(8 - cut):
        second.advance()
    expected, found = whole.table("t"), second.table("t")
    assert found.coefficients.tobytes() == expected.coefficients.tobytes()
    np.testing.assert_array_equal(found.timesteps, expected.timesteps)
    assert second.loss == whole.loss


def test_a_fit_that_diverges_says_so() -> None:
    network = gaussian_network()
    config = FitConfig(iterations=50, batch_size=4, learning_rate=1e30, free_timesteps=False)
    fit = Fit(network, TeacherDistance(network, 4, 0.0), make_table(PROCESS, "ddim", 2), config)
    fit.advance()
    with pytest.raises(InputError, match="expected a finite number: the fit diverged; start over with a learning rate"):
        fit.advance()
