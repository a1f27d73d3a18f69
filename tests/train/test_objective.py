from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from train.objective import Objective, ScheduleTables, diffuse

SCHEDULE = NoiseSchedule.make("linear")
DATA_STD = 0.5


def optimal_eps(x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """E[eps | x_t] for data from N(0, DATA_STD²)."""
    alpha_bar = torch.tensor(SCHEDULE.alpha_bar)[timesteps].reshape(-1, 1, 1, 1)
    return (1 - alpha_bar).sqrt() * x_t / (alpha_bar * DATA_STD**2 + 1 - alpha_bar)


@pytest.mark.parametrize("t", [0, 10, 100, 400, 999])
def test_loss_of_the_optimal_network_on_gaussian_data(t: int) -> None:
    """It is the variance of eps given x_t: ᾱ s² / (ᾱ s² + 1 − ᾱ)."""
    generator = torch.Generator().manual_seed(t)
    x_start = DATA_STD * torch.randn(4000, 1, 5, 5, generator=generator)
    eps = torch.randn(4000, 1, 5, 5, generator=generator)
    losses = Objective(SCHEDULE).per_sample(optimal_eps, x_start, torch.full((4000,), t), eps)
    alpha_bar = SCHEDULE.alpha_bar[t]
    expected = alpha_bar * DATA_STD**2 / (alpha_bar * DATA_STD**2 + 1 - alpha_bar)
    assert losses.shape == (4000,)
    # The mean of 100,000 squares has a relative standard error of √(2/100,000).
    assert float(losses.mean()) == pytest.approx(expected, rel=5 * np.sqrt(2 / 100_000))


def test_diffuse_is_equation_4_in_float32() -> None:
    x_start, eps = torch.randn(1000, 2, 3, 3), torch.randn(1000, 2, 3, 3)
    timesteps = torch.arange(1000)
    x_t = diffuse(x_start, timesteps, eps, ScheduleTables(SCHEDULE))
    alpha_bar = SCHEDULE.alpha_bar.reshape(-1, 1, 1, 1)
    expected = np.sqrt(alpha_bar) * x_start.double().numpy() + np.sqrt(1 - alpha_bar) * eps.double().numpy()
    np.testing.assert_allclose(x_t.numpy(), expected, atol=1e-6)


def test_each_sample_gets_its_own_timestep_and_loss() -> None:
    x_start, eps = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    timesteps = torch.tensor([5, 500, 995])
    objective = Objective(SCHEDULE)

    def network(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x_t * t.reshape(-1, 1, 1, 1) / 1000

    together = objective.per_sample(network, x_start, timesteps, eps)
    for row in range(3):
        alone = objective.per_sample(network, x_start[[row]], timesteps[[row]], eps[[row]])
        torch.testing.assert_close(alone[0], together[row])


def test_unknown_names() -> None:
    with pytest.raises(InputError, match="prediction_type is 'noise', training knows epsilon"):
        Objective(SCHEDULE, prediction_type="noise")
    with pytest.raises(InputError, match="loss is 'l1', training knows simple"):
        Objective(SCHEDULE, loss="l1")
