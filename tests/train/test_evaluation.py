from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import PREDICTION_TYPES, VARIANCE_TYPES, Process, SampleShape
from runtime.images import draw_grid, quantize
from tests.gaussian import GaussianNetwork
from train.evaluation import sample

PROCESS = Process(
    SampleShape(1, 4, 4), NoiseSchedule.make("linear", 30, 1e-3, 0.3), variance_type="fixed_small", clip_sample=None
)
MEAN, STD = 0.4, 0.3


class Optimal:
    """The optimal network for data from N(MEAN, STD²)."""

    def __init__(self, process: Process) -> None:
        self.network = GaussianNetwork(process, MEAN, STD)

    def __call__(self, x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.network(x_t.numpy(), timesteps.numpy()))


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_mean_and_variance_follow_algorithm_2(prediction_type: str, variance_type: str) -> None:
    """Each step is affine in x_t here, so mean and variance have a recursion (Ho et al. 2020, eqs. 6 and 7)."""
    process = dataclasses.replace(PROCESS, prediction_type=prediction_type, variance_type=variance_type)
    optimal = Optimal(process)
    mean, variance = optimal.network.moments(np.arange(30)[::-1])
    x = sample(optimal, process, 3000, seed=0, batch_size=1000)
    assert x.shape == (3000, 1, 4, 4)
    # Within five standard errors.
    assert x.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / x.size))
    assert x.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / x.size))


def test_a_chain_that_starts_from_noise_alone() -> None:
    process = dataclasses.replace(
        PROCESS, schedule=PROCESS.schedule.with_zero_terminal_snr(), prediction_type="v_prediction"
    )
    optimal = Optimal(process)
    mean, variance = optimal.network.moments(np.arange(30)[::-1])
    x = sample(optimal, process, 3000, seed=0, batch_size=1000)
    assert x.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / x.size))
    assert x.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / x.size))


def test_x_start_is_clipped_and_the_last_step_adds_no_noise() -> None:
    # The last step returns x_start itself, so nothing may stand beyond the clip.
    process = dataclasses.replace(PROCESS, clip_sample=0.25, variance_type="fixed_large")
    x = sample(Optimal(PROCESS), process, 50, seed=0)
    assert np.abs(x).max() <= 0.25 + 1e-6


def test_samples_do_not_depend_on_the_batch_size() -> None:
    seen = []
    whole = sample(Optimal(PROCESS), PROCESS, 7, seed=1, on_step=lambda: seen.append(1))
    assert len(seen) == 30
    np.testing.assert_allclose(sample(Optimal(PROCESS), PROCESS, 7, seed=1, batch_size=3), whole, atol=1e-6)
    assert not np.allclose(sample(Optimal(PROCESS), PROCESS, 7, seed=2), whole, atol=0.1)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_every_sample_in_its_place(channels: int) -> None:
    levels = np.linspace(-1.0, 1.0, 5)
    x = np.broadcast_to(levels[:, None, None, None], (5, channels, 8, 8))
    image = draw_grid(quantize(x))
    assert image.size == (3 * 66 + 2, 2 * 66 + 2)  # tiles of 8 pixels enlarged to 64, with two between
    pixels = np.asarray(image).reshape(134, 200, channels)
    for index, expected in enumerate([0, 64, 128, 191, 255]):
        top, left = 2 + 66 * (index // 3), 2 + 66 * (index % 3)
        tile = pixels[top : top + 64, left : left + 64]
        assert (tile == expected).all()
