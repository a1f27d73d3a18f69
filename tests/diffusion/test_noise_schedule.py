"""The schedules against diffusers and against their definitions."""

import json

import numpy as np
import pytest

from diffusion.diffusers_config import schedule_from_diffusers
from diffusion.errors import InputError
from diffusion.noise_schedule import SCHEDULE_KINDS, NoiseSchedule

NAMED = [kind for kind in SCHEDULE_KINDS if kind != "explicit"]


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("num_train_timesteps", [10, 1000])
def test_betas_equal_those_of_diffusers(kind, num_train_timesteps):
    from diffusers import DDPMScheduler, HeunDiscreteScheduler

    scheduler = HeunDiscreteScheduler if kind == "exp" else DDPMScheduler
    oracle = scheduler(num_train_timesteps, 1e-4, 0.02, beta_schedule=kind)
    schedule = NoiseSchedule.make(kind, num_train_timesteps)
    np.testing.assert_allclose(schedule.betas, oracle.betas.numpy(), rtol=2e-5, atol=1e-8)  # theirs are float32
    np.testing.assert_allclose(schedule.alpha_bar, oracle.alphas_cumprod.numpy(), rtol=1e-3, atol=1e-7)


def test_zero_terminal_snr_equals_that_of_diffusers():
    from diffusers import DDPMScheduler

    config = {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}
    oracle = DDPMScheduler(**config, prediction_type="v_prediction")
    schedule = schedule_from_diffusers(config)
    assert schedule.alpha_bar[-1] == 0.0
    assert schedule.betas[-1] == 1.0
    np.testing.assert_allclose(schedule.betas, oracle.betas.numpy(), rtol=2e-3, atol=1e-6)


def test_alpha_bar_is_the_product_of_alphas():
    schedule = NoiseSchedule.explicit([0.1, 0.2, 0.5])
    np.testing.assert_allclose(schedule.alpha_bar, [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.5], rtol=1e-15)
    np.testing.assert_allclose(schedule.alpha_bar_prev, [1.0, 0.9, 0.72], rtol=1e-15)
    np.testing.assert_allclose(schedule.posterior_variance, [0.0, 0.2 * 0.1 / 0.28, 0.5 * 0.28 / 0.64], rtol=1e-14)
    np.testing.assert_allclose(schedule.snr, [9.0, 0.72 / 0.28, 0.36 / 0.64], rtol=1e-14)
    np.testing.assert_allclose(schedule.log_snr, np.log(schedule.snr), rtol=1e-13)


@pytest.mark.parametrize("kind", SCHEDULE_KINDS)
def test_json_gives_the_same_bits_back(kind):
    schedule = NoiseSchedule.make("linear", 50) if kind == "explicit" else NoiseSchedule.make(kind, 50)
    if kind == "explicit":
        schedule = schedule.with_zero_terminal_snr()
    again = NoiseSchedule.from_json(json.loads(json.dumps(schedule.to_json())))
    assert again.kind == schedule.kind
    assert np.array_equal(again.betas, schedule.betas)
    assert again == schedule


def test_truncated_keeps_the_first_timesteps():
    schedule = NoiseSchedule.make("linear", 100)
    np.testing.assert_array_equal(schedule.truncated(30).alpha_bar, schedule.alpha_bar[:30])


def test_a_schedule_cannot_be_changed():
    betas = np.full(5, 0.1)
    schedule = NoiseSchedule.explicit(betas)
    betas[0] = 0.9
    assert schedule.betas[0] == 0.1
    with pytest.raises(ValueError, match="read-only"):
        schedule.betas[0] = 0.5
    with pytest.raises(ValueError, match="read-only"):
        schedule.alpha_bar[0] = 0.5


@pytest.mark.parametrize(
    ("betas", "says"),
    [
        ([], "expected a list"),
        ([[0.1]], "expected a list"),
        (["a"], "not a list of numbers"),
        ([0.1, 0.0], r"beta\[1\] is .*0\.0"),
        ([0.1, -0.2], r"beta\[1\]"),
        ([0.1, float("nan")], r"beta\[1\]"),
        ([1.0, 0.5], r"beta\[0\]"),
        ([0.1, 1.5], r"beta\[1\]"),
        ([1e-30, 0.5], r"alpha_bar\[0\]"),
        ([0.9999] * 200, "alpha_bar"),  # vanishes before the end
    ],
)
def test_impossible_betas_are_refused(betas, says):
    with pytest.raises(InputError, match=says):
        NoiseSchedule.explicit(betas)


LINEAR = {"kind": "linear", "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "kind is 'None'"),
        ({"kind": "cosine"}, "kind is 'cosine'"),
        ({"kind": "linear", "beta_star": 1}, "no field 'beta_star'"),
        (LINEAR | {"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        (LINEAR | {"num_train_timesteps": 2**20}, "num_train_timesteps is 1048576"),
        (LINEAR | {"num_train_timesteps": "many"}, "whole number"),
        (LINEAR | {"beta_end": 2.0}, "beta_end is 2.0"),
        ({"kind": "explicit"}, "needs the field 'betas'"),
        ({"kind": "explicit", "betas": [0.1], "num_train_timesteps": 7}, "num_train_timesteps is 7"),
    ],
)
def test_impossible_json_is_refused(fields, says):
    with pytest.raises(InputError, match=says):
        NoiseSchedule.from_json(fields)
