from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import PREDICTION_TYPES, Process, SampleShape
from tests.gaussian import GaussianNetwork
from train.objective import HYBRID_WEIGHT, Objective, weights_min_snr, weights_simple, x_start_error_scale

SCHEDULE = NoiseSchedule.make("linear")
PROCESS = Process(SampleShape(1, 5, 5), SCHEDULE, clip_sample=None)
DATA_STD = 0.5


def make_process(prediction_type: str, schedule: NoiseSchedule = SCHEDULE) -> Process:
    return Process(SampleShape(1, 4, 4), schedule, prediction_type)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_is_the_same_loss_of_x_start_for_every_prediction(prediction_type: str) -> None:
    process, gamma = make_process(prediction_type), 5.0
    of_x_start = weights_min_snr(process, gamma) / x_start_error_scale(process)
    np.testing.assert_allclose(of_x_start, np.minimum(SCHEDULE.snr, gamma))


def test_min_snr_on_the_predictions_own_error() -> None:
    """As Hang et al. 2023 and those after them write it down for each prediction."""
    snr, gamma = SCHEDULE.snr, 3.0
    capped = np.minimum(snr, gamma)
    expected = {
        "epsilon": capped / snr,
        "sample": capped,
        "v_prediction": capped / (snr + 1),
        "score": capped / snr * (1 - SCHEDULE.alpha_bar),
    }
    for prediction_type, weights in expected.items():
        np.testing.assert_allclose(weights_min_snr(make_process(prediction_type), gamma), weights, rtol=1e-12)


def test_simple_scores_are_weighted_to_the_error_of_epsilon() -> None:
    score, epsilon = make_process("score"), make_process("epsilon")
    np.testing.assert_allclose(
        weights_simple(score, 5.0) / x_start_error_scale(score),
        weights_simple(epsilon, 5.0) / x_start_error_scale(epsilon),
    )
    for prediction_type in ("epsilon", "sample", "v_prediction"):
        assert (weights_simple(make_process(prediction_type), 5.0) == 1.0).all()


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_the_timestep_without_signal_is_trained(prediction_type: str) -> None:
    weights = weights_min_snr(make_process(prediction_type, SCHEDULE.with_zero_terminal_snr()), 5.0)
    assert weights[-1] == 1.0
    assert 0.0 < weights[-2] < 1e-3


class TorchGaussian:
    """The optimal network for data from N(0, DATA_STD²)."""

    def __init__(self, process: Process) -> None:
        self.network = GaussianNetwork(process, 0.0, DATA_STD)

    def __call__(self, x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.network(x_t.numpy(), timesteps.numpy()))


def minimum(prediction_type: str, loss: str, t: int) -> float:
    """The loss of the optimal network: the variance of the data given x_t, times what the loss makes of it."""
    snr, alpha_bar = SCHEDULE.snr[t], SCHEDULE.alpha_bar[t]
    of_x_start = DATA_STD**2 / (1 + snr * DATA_STD**2)
    if loss == "min-snr":
        return float(min(snr, 5.0) * of_x_start)
    scale = {"epsilon": snr, "sample": 1.0, "v_prediction": 1 / (1 - alpha_bar), "score": snr}[prediction_type]
    return float(scale * of_x_start)


@pytest.mark.parametrize("loss", ["simple", "min-snr"])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_loss_of_the_optimal_network_on_gaussian_data(prediction_type: str, loss: str) -> None:
    process = dataclasses.replace(PROCESS, prediction_type=prediction_type)
    objective, network = Objective(process, loss), TorchGaussian(process)
    for t in (0, 10, 100, 400, 999):
        generator = torch.Generator().manual_seed(t)
        x_start = DATA_STD * torch.randn(4000, 1, 5, 5, generator=generator)
        eps = torch.randn(4000, 1, 5, 5, generator=generator)
        measured = objective.measure(network, x_start, torch.full((4000,), t), eps)
        assert measured.losses.shape == (4000,)
        # The mean of 100,000 squares has a relative standard error of √(2/100,000).
        within = 5 * np.sqrt(2 / 100_000)
        assert float(measured.losses.mean()) == pytest.approx(minimum(prediction_type, loss, t), rel=within)
        # The error of eps is the same whatever is predicted.
        assert float(measured.eps_errors.mean()) == pytest.approx(minimum("epsilon", "simple", t), rel=within)


def test_each_sample_gets_its_own_timestep_and_loss() -> None:
    x_start, eps = torch.randn(3, 1, 4, 4).clamp(-1, 1), torch.randn(3, 1, 4, 4)
    timesteps = torch.tensor([0, 500, 995])

    def network(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x_t * t.reshape(-1, 1, 1, 1) / 1000

    for loss in ("simple", "min-snr", "vlb"):
        objective = Objective(PROCESS, loss)
        together = objective.per_sample(network, x_start, timesteps, eps)
        for row in range(3):
            alone = objective.per_sample(network, x_start[[row]], timesteps[[row]], eps[[row]])
            torch.testing.assert_close(alone[0], together[row])


@pytest.mark.parametrize("loss", ["simple", "min-snr"])
def test_the_bound_in_the_hybrid_loss_trains_the_variance_alone(loss: str) -> None:
    learned = dataclasses.replace(PROCESS, variance_type="learned_range")
    x_start, eps = torch.randn(4, 1, 5, 5).clamp(-1, 1), torch.randn(4, 1, 5, 5)
    timesteps = torch.tensor([0, 3, 300, 999])
    p = (0.1 * torch.randn(4, 1, 5, 5)).requires_grad_()
    w = (0.1 * torch.randn(4, 1, 5, 5)).requires_grad_()

    def loss_of(process: Process, name: str) -> torch.Tensor:
        channels = torch.cat([p, w], dim=1) if process is learned else p
        return Objective(process, name).per_sample(lambda x_t, t: channels, x_start, timesteps, eps)

    hybrid, plain, bound = loss_of(learned, loss), loss_of(PROCESS, loss), loss_of(learned, "vlb")
    torch.testing.assert_close(hybrid, plain + HYBRID_WEIGHT * bound)
    of_hybrid = torch.autograd.grad(hybrid.sum(), (p, w))
    (of_plain,) = torch.autograd.grad(plain.sum(), p)
    of_bound = torch.autograd.grad(bound.sum(), (p, w))
    torch.testing.assert_close(of_hybrid[0], of_plain)
    torch.testing.assert_close(of_hybrid[1], HYBRID_WEIGHT * of_bound[1])
    assert (of_bound[0] != 0).any()
    assert (of_hybrid[1].flatten(1).abs().sum(dim=1) > 0).all()  # at t = 0 too


def test_another_schedule_is_another_objective() -> None:
    other = NoiseSchedule.make("squaredcos_cap_v2")
    x_start, eps, timesteps = torch.randn(3, 1, 5, 5), torch.randn(3, 1, 5, 5), torch.tensor([1, 500, 900])
    for loss in ("simple", "min-snr", "vlb"):
        moved, made = Objective(PROCESS, loss), Objective(dataclasses.replace(PROCESS, schedule=other), loss)
        before = moved.per_sample(lambda x_t, t: x_t, x_start, timesteps, eps)
        moved.set_schedule(other)
        after = moved.per_sample(lambda x_t, t: x_t, x_start, timesteps, eps)
        torch.testing.assert_close(after, made.per_sample(lambda x_t, t: x_t, x_start, timesteps, eps), rtol=0, atol=0)
        assert not torch.allclose(after, before)
        assert moved.process == made.process


def test_unknown_loss() -> None:
    with pytest.raises(InputError, match="loss is 'l1', training knows simple, min-snr, vlb"):
        Objective(PROCESS, loss="l1")
