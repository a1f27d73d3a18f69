"""The torch loss against the NumPy bound, value and gradient."""

import numpy as np
import pytest
import torch

from diffusion.binomial import constant_erasure, q_x_t_given_x_start
from diffusion.binomial_bound import step_bits
from diffusion.noise_schedule import NoiseSchedule
from train.binary_objective import BinaryObjective

SCHEDULES = {"constant erasure": constant_erasure(2000), "linear": NoiseSchedule.make("linear", 2000)}


@pytest.fixture(params=SCHEDULES)
def schedule(request) -> NoiseSchedule:
    return SCHEDULES[request.param]


def test_bits_are_those_of_the_bound(schedule):
    rng = np.random.default_rng(0)
    timesteps = np.array([0, 0, 1, 7, 1000, 1999])
    x_start, x_t = rng.integers(2, size=(2, 6, 2, 1, 3)).astype(np.float32)
    logits = (6.0 * rng.standard_normal((6, 2, 1, 3))).astype(np.float32)
    found = BinaryObjective(schedule).bits(*map(torch.from_numpy, (logits, x_start, x_t, timesteps)))
    for place, t in enumerate(timesteps):
        expected = step_bits(schedule, logits[place], x_start[place], x_t[place], int(t)).sum()
        # Where next to nothing is left to decide both are sums of terms that cancel to 1e-16 of their size.
        assert float(found[place]) == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_gradients_are_finite_everywhere_and_right_at_each_timestep(schedule):
    objective = BinaryObjective(schedule)
    timesteps = torch.tensor([0, 1, 1999])
    x_start = torch.tensor([1.0, 0.0, 1.0]).reshape(3, 1, 1, 1)
    x_t = torch.tensor([0.0, 1.0, 0.0]).reshape(3, 1, 1, 1)
    logits = torch.tensor([0.5, -1.0, 40.0], dtype=torch.float64).reshape(3, 1, 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(objective.bits(logits, x_start, x_t, timesteps).sum(), logits)
    assert torch.isfinite(gradient).all()
    h = 1e-6
    with torch.no_grad():
        above, below = (objective.bits(logits + shift, x_start, x_t, timesteps) for shift in (h, -h))
    np.testing.assert_allclose(gradient.reshape(-1), (above - below) / (2 * h), rtol=1e-4, atol=1e-9)


def test_corruption_has_the_closed_forms_frequencies(schedule):
    num, t = 20_000, 900
    uniform = torch.rand(num, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    x_start = torch.tensor([0.0, 1.0]).expand(num, 1, 1, 2)
    x_t = BinaryObjective(schedule).corrupt(x_start, torch.full((num,), t), uniform)
    assert set(x_t.unique().tolist()) == {0.0, 1.0}
    expected = q_x_t_given_x_start(schedule, np.array([0.0, 1.0]), t)
    np.testing.assert_allclose(x_t.mean(dim=(0, 1, 2)), expected, atol=0.015)
