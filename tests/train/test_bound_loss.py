from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion.bound import bits_per_dim, bound_term, prior_term
from diffusion.discretized_decoder import log_interval_probability as reference_log_interval_probability
from diffusion.gaussian import q_sample
from diffusion.noise_schedule import NoiseSchedule
from diffusion.prediction import from_x_start
from diffusion.process import PREDICTION_TYPES, VARIANCE_TYPES, Process, SampleShape
from train.bound_loss import BoundLoss, log_interval_probability

LEVELS = 129  # bins about as wide as the decoder's standard deviation
SHAPE = SampleShape(2, 3, 3, LEVELS)
TIMESTEPS = np.array([0, 1, 2, 30, 500, 998, 999, 0])


def measured_and_reference(process: Process) -> tuple[np.ndarray, np.ndarray]:
    """Bits per dimension by the loss and by `diffusion.bound`, of a network that is somewhat wrong."""
    generator = np.random.default_rng(0)
    num, schedule = len(TIMESTEPS), process.schedule
    x_start = generator.integers(0, LEVELS, (num, *SHAPE.chw)) / (0.5 * (LEVELS - 1)) - 1.0
    x_start[0, 0] = [[-1, 1, -1], [1, 0, 1], [-1, -1, 1]]  # both outer bins
    eps = generator.standard_normal(x_start.shape)
    place = TIMESTEPS.reshape(-1, 1, 1, 1)
    alpha_bar = schedule.alpha_bar[place]
    x_t = q_sample(schedule, x_start, place, eps)
    off = 0.3 * np.sqrt(1 - alpha_bar) * generator.standard_normal(x_start.shape)
    target = from_x_start(x_start, process.prediction_type, x_t, alpha_bar)
    p = from_x_start(x_start + off, process.prediction_type, x_t, alpha_bar)
    w = generator.uniform(-1.5, 1.5, x_start.shape) if process.variance_type == "learned_range" else None
    prediction = p if w is None else np.concatenate([p, w], axis=1)
    nats = bound_term(process, x_start, x_t, TIMESTEPS, prediction)
    expected = bits_per_dim(
        schedule.num_train_timesteps * nats + prior_term(schedule, x_start), process.sample.num_elements
    )
    tensors = [None if array is None else torch.from_numpy(array).float() for array in (target - p, w, x_start)]
    found = BoundLoss(process).per_sample(*tensors, torch.from_numpy(TIMESTEPS))
    return found.numpy(), expected


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_equals_the_bound_in_float64(prediction_type: str, variance_type: str) -> None:
    process = Process(SHAPE, NoiseSchedule.make("linear"), prediction_type, variance_type, clip_sample=None)
    found, expected = measured_and_reference(process)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_equals_the_bound_where_the_schedule_ends_in_noise_alone(prediction_type: str) -> None:
    schedule = NoiseSchedule.make("squaredcos_cap_v2").with_zero_terminal_snr()
    process = Process(SHAPE, schedule, prediction_type, "learned_range", clip_sample=None)
    found, expected = measured_and_reference(process)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-9)


def test_interval_probability_far_from_the_mean() -> None:
    lower = np.array([-9000.0, -40.0, -1.0, -0.01, 0.0, 5.0, 39.0, 200.0, 8999.0])
    upper = lower + np.array([1.0, 0.01, 2.0, 0.02, 1.0, 1e-3, 10.0, 0.5, 30.0])
    low, high = (torch.from_numpy(edge).requires_grad_() for edge in (lower, upper))
    found = log_interval_probability(low, high)
    np.testing.assert_allclose(found.detach().numpy(), reference_log_interval_probability(lower, upper), rtol=1e-8)
    # Shifting both edges changes ln P by [φ(upper) − φ(lower)]/P, here by differences of the reference.
    found.sum().backward()
    assert low.grad is not None
    assert high.grad is not None
    step = 1e-4
    slope = (
        reference_log_interval_probability(lower + step, upper + step)
        - reference_log_interval_probability(lower - step, upper - step)
    ) / (2 * step)
    np.testing.assert_allclose((low.grad + high.grad).numpy(), slope, rtol=1e-4, atol=1e-6)


def test_gradients_are_finite_however_wrong_the_network_is() -> None:
    process = Process(SHAPE, NoiseSchedule.make("linear"), "sample", "learned_range", clip_sample=None)
    x_start = torch.tensor([-1.0, 0.0, 1.0]).repeat(6).reshape(1, *SHAPE.chw)
    for size in (0.0, 1e-3, 1.0, 50.0):
        for sign in (-1.0, 1.0):
            error = torch.full_like(x_start, sign * size).requires_grad_()
            w = torch.zeros_like(x_start, requires_grad=True)
            loss = BoundLoss(process).per_sample(error, w, x_start, torch.tensor([0]))
            loss.sum().backward()
            assert error.grad is not None
            assert w.grad is not None
            assert torch.isfinite(loss).all()
            assert torch.isfinite(error.grad).all()
            assert torch.isfinite(w.grad).all()
            # Further off is less likely, but for a pixel in an outer bin on its open side.
            if size == 1.0:
                closed = x_start.abs() < 1
                assert (sign * error.grad[closed] > 0).all()
