from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion.noise_schedule import NoiseSchedule
from diffusion.prediction import from_x_start
from diffusion.process import PREDICTION_TYPES
from train.targets import TARGETS, ScheduleTables, diffuse

SCHEDULE = NoiseSchedule.make("linear")


def test_diffuse_is_equation_4_in_float32() -> None:
    x_start, eps = torch.randn(1000, 2, 3, 3), torch.randn(1000, 2, 3, 3)
    timesteps = torch.arange(1000)
    x_t = diffuse(x_start, timesteps, eps, ScheduleTables(SCHEDULE))
    alpha_bar = SCHEDULE.alpha_bar.reshape(-1, 1, 1, 1)
    expected = np.sqrt(alpha_bar) * x_start.double().numpy() + np.sqrt(1 - alpha_bar) * eps.double().numpy()
    np.testing.assert_allclose(x_t.numpy(), expected, atol=1e-6)


def test_there_is_a_target_for_every_prediction_type() -> None:
    assert set(TARGETS) == set(PREDICTION_TYPES)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_target_stands_for_x_start(prediction_type: str) -> None:
    generator = torch.Generator().manual_seed(0)
    timesteps = torch.tensor([0, 1, 50, 500, 999])
    x_start, eps = (torch.randn(5, 2, 3, 3, generator=generator) for _ in range(2))
    target = TARGETS[prediction_type](x_start, timesteps, eps, ScheduleTables(SCHEDULE))
    alpha_bar = SCHEDULE.alpha_bar[timesteps].reshape(-1, 1, 1, 1)
    x_t = np.sqrt(alpha_bar) * x_start.double().numpy() + np.sqrt(1 - alpha_bar) * eps.double().numpy()
    expected = from_x_start(x_start.double().numpy(), prediction_type, x_t, alpha_bar)
    np.testing.assert_allclose(target.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_targets_where_nothing_is_left_of_the_data(prediction_type: str) -> None:
    tables = ScheduleTables(NoiseSchedule.make("linear", 10).with_zero_terminal_snr())
    x_start, eps = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2)
    timesteps = torch.tensor([9])
    torch.testing.assert_close(diffuse(x_start, timesteps, eps, tables), eps)
    sign = {"sample": 1.0, "v_prediction": -1.0}[prediction_type]
    torch.testing.assert_close(TARGETS[prediction_type](x_start, timesteps, eps, tables), sign * x_start)
