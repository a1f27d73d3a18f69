"""DDIM's eta: what is allowed, what is said of what is not; and inversion, its rows run upwards."""

import re

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import PREDICTION_TYPES
from diffusion.reference_loop import initial_noise, reference_loop
from diffusion.samplers import make_table
from diffusion.samplers.ddim import ddim_inversion
from diffusion.spacing import spaced_timesteps
from tests.diffusion.samplers.networks import RandomNetwork, a_process, flow_of_gaussian_data, gaussian

SCHEDULES = ["linear", "squaredcos_cap_v2"]


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("num_steps", [2, 10, 1000])
def test_the_message_gives_the_largest_eta(kind, num_steps):
    process = a_process(schedule=NoiseSchedule.make(kind))
    with pytest.raises(InputError, match="eta is 100") as refused:
        make_table(process, "ddim", num_steps, eta=100.0)
    largest = float(re.search(r"expected 0 to ([\d.]+) for", str(refused.value))[1])
    assert 1.0 <= largest < 100.0
    table = make_table(process, "ddim", num_steps, eta=largest)
    alpha_bar = process.schedule.alpha_bar[table.timesteps]
    left = 1 - np.append(alpha_bar[1:], 1) - table.column("s") ** 2
    assert left.min() > -1e-12
    if num_steps == 10:  # and no smaller than it has to be
        assert left[:-1].min() < 1e-4
    with pytest.raises(InputError, match="expected 0 to"):
        make_table(process, "ddim", num_steps, eta=largest + 2e-5)


def test_eta_scales_the_noise():
    whole, half = (make_table(a_process(), "ddim", 10, eta=eta) for eta in (1.0, 0.5))
    np.testing.assert_allclose(half.column("s"), 0.5 * whole.column("s"), rtol=1e-15)
    assert not make_table(a_process(), "ddim", 10).column("s").any()


@pytest.mark.parametrize("eta", [-0.1, np.nan, np.inf])
@pytest.mark.parametrize("num_steps", [1, 10])
def test_impossible_etas(eta, num_steps):
    with pytest.raises(InputError, match="eta is"):
        make_table(a_process(), "ddim", num_steps, eta=eta)


def test_one_step_has_no_noise_for_eta_to_scale():
    np.testing.assert_array_equal(
        make_table(a_process(), "ddim", 1, eta=1e300).coefficients, make_table(a_process(), "ddim", 1).coefficients
    )


@pytest.mark.parametrize("kind", SCHEDULES)
def test_inversion_then_sampling_returns_the_image(kind):
    process = a_process(schedule=NoiseSchedule.make(kind))
    network = gaussian(process)
    image = 0.3 + 0.5 * initial_noise((4, *process.sample.chw), 2, 0).astype(np.float64)
    errors = []
    for num_steps in (50, 200, 1000):
        timesteps = spaced_timesteps("trailing", num_steps, process.schedule)
        x_T = reference_loop(ddim_inversion(process, timesteps), network, image)
        errors.append(np.abs(reference_loop(make_table(process, "ddim", num_steps), network, x_T) - image).max())
    assert errors[-1] < 0.01
    assert errors[0] > 3 * errors[1] > 9 * errors[2]  # first order


def test_inversion_follows_the_flow_upwards():
    process = a_process()
    image = np.linspace(-1.5, 1.5, 16).reshape(1, 1, 4, 4)
    x_T = reference_loop(ddim_inversion(process, np.arange(1000)[::-1]), gaussian(process), image)
    expected = flow_of_gaussian_data(image, 1.0, process.schedule.alpha_bar[-1], 0.3, 0.5)
    np.testing.assert_allclose(x_T, expected, rtol=0, atol=0.03)


def test_inversion_undoes_every_row_of_ddim_but_for_the_state_that_the_network_sees():
    process = a_process()
    timesteps = np.array([999, 700, 300, 5])
    down, up = make_table(process, "ddim", timesteps=timesteps), ddim_inversion(process, timesteps)
    np.testing.assert_array_equal(up.timesteps, timesteps[::-1])
    assert not up.column("s").any()

    # A network of t alone that predicts eps says the same of either state: then up and down are exact inverses.
    def eps(x, t):
        return 0 * x + np.sin(t)[:, None, None, None] * 0.1

    x = 0.1 * initial_noise((2, *process.sample.chw), 0, 0).astype(np.float64)
    np.testing.assert_allclose(reference_loop(down, eps, reference_loop(up, eps, x)), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_inversion_is_the_same_whatever_the_network_predicts(prediction_type):
    timesteps, x = np.array([999, 500, 0]), initial_noise((2, 1, 4, 4), 0, 0).astype(np.float64)
    ours, expected = (
        reference_loop(ddim_inversion(process, timesteps), RandomNetwork(process), x)
        for process in (a_process(prediction_type=prediction_type), a_process())
    )
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_clipped_inversion_is_the_loop_written_out(prediction_type):
    clip, timesteps = 0.6, [0, 40, 250, 700, 999]
    process = a_process(prediction_type=prediction_type, clip_sample=clip)
    x = 0.3 * initial_noise((2, *process.sample.chw), 0, 0).astype(np.float64)
    ours = reference_loop(ddim_inversion(process, np.array(timesteps[::-1])), RandomNetwork(process), x)

    predicts_eps = RandomNetwork(a_process())
    alpha_bar_prev, num_clipped = 1.0, 0
    for timestep in timesteps:
        alpha_bar = process.schedule.alpha_bar[timestep]
        eps = predicts_eps(x, np.full(2, timestep))
        x_start = (x - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar)
        num_clipped += np.count_nonzero(np.abs(x_start) > clip)
        x_start = np.clip(x_start, -clip, clip)
        eps = (x - np.sqrt(alpha_bar) * x_start) / np.sqrt(1 - alpha_bar)
        rho, rho_prev = (np.sqrt((1 - each) / each) for each in (alpha_bar, alpha_bar_prev))
        x = np.sqrt(alpha_bar) * (x / np.sqrt(alpha_bar_prev) + (rho - rho_prev) * eps)
        alpha_bar_prev = alpha_bar
    assert 0.2 < num_clipped / (len(timesteps) * x.size) < 0.8
    np.testing.assert_allclose(ours, x, rtol=0, atol=1e-11)


def test_inversion_reaches_zero_terminal_snr():
    schedule = NoiseSchedule.make("linear").with_zero_terminal_snr()
    process = a_process(schedule=schedule, prediction_type="v_prediction")
    x = initial_noise((2, 1, 4, 4), 0, 0)
    assert np.isfinite(
        reference_loop(ddim_inversion(process, np.array([999, 500, 0])), RandomNetwork(process), x)
    ).all()


def test_inversion_takes_descending_timesteps():
    with pytest.raises(InputError, match="strictly descending"):
        ddim_inversion(a_process(), np.array([0, 500, 999]))
