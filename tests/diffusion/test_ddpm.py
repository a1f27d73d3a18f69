"""The table of Algorithm 2: against the paper's line 4, against diffusers, and against closed forms."""

import numpy as np
import pytest
import torch

from diffusion.noise_schedule import NoiseSchedule
from diffusion.prediction import convert_prediction
from diffusion.process import PREDICTION_TYPES, Process, SampleShape
from diffusion.reference_loop import initial_noise, reference_loop, reference_states
from diffusion.samplers import make_table
from tests.diffusers_loop import diffusers_loop
from tests.gaussian import GaussianNetwork

SHAPE = SampleShape(1, 4, 4)
SUBSET = [49, 40, 21, 8, 3, 0]


def a_process(**changes) -> Process:
    return Process(**({"sample": SHAPE, "schedule": NoiseSchedule.make("linear", 50), "clip_sample": None} | changes))


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_unclipped_rows_are_line_4_of_algorithm_2(variance_type):
    process = a_process(variance_type=variance_type)
    table, schedule = make_table(process), process.schedule
    # x_{t−1} = 1/√α_t (x_t − β_t/√(1−ᾱ_t) ε) + σ_t z, with z = 0 at the end
    np.testing.assert_allclose(table.column("a"), (1 / np.sqrt(schedule.alphas))[::-1], rtol=1e-12)
    q = -schedule.betas / np.sqrt(1 - schedule.alpha_bar) / np.sqrt(schedule.alphas)
    np.testing.assert_allclose(table.column("q"), q[::-1], rtol=1e-12)
    variance = schedule.betas if variance_type == "fixed_large" else schedule.posterior_variance
    np.testing.assert_allclose(table.column("s")[:-1], np.sqrt(variance)[:0:-1], rtol=1e-12)
    assert table.column("s")[-1] == 0.0
    for name in ("b", "c1", "c2", "d", "f", "g1", "g2", "k"):
        assert not table.column(name).any()


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip_sample", [None, 0.8])
@pytest.mark.parametrize("timesteps", [None, SUBSET])
def test_equals_diffusers(variance_type, prediction_type, clip_sample, timesteps, monkeypatch):
    process = a_process(variance_type=variance_type, prediction_type=prediction_type, clip_sample=clip_sample)
    network = GaussianNetwork(process, mean=0.3, std=0.5)
    table = make_table(process, timesteps=timesteps)
    x = initial_noise((3, *SHAPE.chw), seed=7, start=20).astype(np.float64)

    def predict(state: torch.Tensor, timestep: int) -> torch.Tensor:
        return torch.from_numpy(network(state.numpy(), np.full(3, timestep)))

    theirs = diffusers_loop(process, table.timesteps, predict, x, 7, 20, monkeypatch)
    ours = reference_loop(table, network, x, seed=7, start=20)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_diffusers_adds_noise_after_a_last_timestep_above_0_and_we_do_not(monkeypatch):
    process = a_process(variance_type="fixed_large")
    network = GaussianNetwork(process, mean=0.3, std=0.5)
    table = make_table(process, num_steps=5, spacing="trailing")
    assert table.timesteps[-1] > 0
    x = initial_noise((3, *SHAPE.chw), seed=7, start=0).astype(np.float64)

    def predict(state: torch.Tensor, timestep: int) -> torch.Tensor:
        return torch.from_numpy(network(state.numpy(), np.full(3, timestep)))

    theirs = diffusers_loop(process, table.timesteps, predict, x, 7, 0, monkeypatch)
    difference = np.abs(reference_loop(table, network, x, seed=7) - theirs)
    last_std = np.sqrt(1 - process.schedule.alpha_bar[table.timesteps[-1]])
    assert 0.3 * last_std < np.median(difference) < 1.5 * last_std  # |N(0, 1)| has median 0.67


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("clip_sample", [None, 0.5])
@pytest.mark.parametrize("variance_type", ["fixed_small", "learned_range"])
def test_a_network_gives_the_same_chain_whatever_it_predicts(prediction_type, clip_sample, variance_type):
    process = a_process(clip_sample=clip_sample, variance_type=variance_type)
    network = GaussianNetwork(process, mean=-0.2, std=0.6)
    other = a_process(clip_sample=clip_sample, variance_type=variance_type, prediction_type=prediction_type)

    def converted(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        eps_and_w = network(x, t)
        alpha_bar = process.schedule.alpha_bar[t.astype(int)][:, None, None, None]
        p = convert_prediction(eps_and_w[:, :1], "epsilon", prediction_type, x, alpha_bar)
        return np.concatenate([p, eps_and_w[:, 1:]], axis=1)

    x = initial_noise((2, *SHAPE.chw), seed=1, start=0)
    expected = reference_loop(make_table(process), network, x)
    np.testing.assert_allclose(reference_loop(make_table(other), converted, x), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("timesteps", [None, SUBSET])
def test_gaussian_data_follow_the_closed_form(variance_type, timesteps):
    process = a_process(variance_type=variance_type)
    network = GaussianNetwork(process, mean=0.4, std=0.5)
    table = make_table(process, timesteps=timesteps)
    num = 3000
    x_0 = reference_loop(table, network, initial_noise((num, *SHAPE.chw), 3, 0), seed=3)
    mean, variance = network.moments(table.timesteps)
    count = x_0.size
    assert abs(x_0.mean() - mean) < 4 * np.sqrt(variance / count)
    assert abs(x_0.var() - variance) < 4 * variance * np.sqrt(2 / count)


def test_the_full_chain_with_the_best_network_returns_the_data():
    # Fine steps: both variances reach the data's own mean and variance.
    for variance_type in ("fixed_small", "fixed_large"):
        process = a_process(schedule=NoiseSchedule.make("linear", 1000), variance_type=variance_type)
        mean, variance = GaussianNetwork(process, mean=0.4, std=0.5).moments(make_table(process).timesteps)
        assert abs(mean - 0.4) < 0.01
        assert abs(variance - 0.25) < 0.01


def test_a_subset_has_the_alpha_bar_of_the_full_chain():
    process = a_process()
    table, schedule = make_table(process, timesteps=SUBSET), process.schedule
    np.testing.assert_allclose(table.column("u"), 1 / np.sqrt(schedule.alpha_bar[SUBSET]), rtol=1e-14)
    np.testing.assert_allclose(table.column("v"), -np.sqrt(1 / schedule.alpha_bar[SUBSET] - 1), rtol=1e-12)


def test_one_step_returns_the_predicted_x_start():
    process = a_process(clip_sample=1.0)
    network = GaussianNetwork(process, mean=0.4, std=0.5)
    x = initial_noise((2, *SHAPE.chw), 0, 0)
    (state,) = reference_states(make_table(process, num_steps=1), network, x)
    np.testing.assert_allclose(state.x, state.x_start, rtol=0, atol=1e-15)


def test_symmetric_data_gives_a_symmetric_chain():
    process = a_process()
    table, network = make_table(process, timesteps=[49, 0]), GaussianNetwork(process, mean=0.0, std=0.5)
    x = initial_noise((2, *SHAPE.chw), 0, 0).astype(np.float64)
    one, other = (next(reference_states(table, network, sign * x)).x_start for sign in (1, -1))
    np.testing.assert_array_equal(one, -other)


def test_zero_terminal_snr_runs_with_predictions_that_allow_it():
    schedule = NoiseSchedule.make("linear", 50).with_zero_terminal_snr()
    for prediction_type in ("sample", "v_prediction"):
        for clip_sample in (None, 1.0):
            process = a_process(schedule=schedule, prediction_type=prediction_type, clip_sample=clip_sample)
            x_0 = reference_loop(make_table(process), GaussianNetworkAtZero(process), initial_noise((2, 1, 4, 4), 0, 0))
            assert np.isfinite(x_0).all()


class GaussianNetworkAtZero(GaussianNetwork):
    """The conversion through ᾱ = 0 has no inverse, so the prediction is written down directly."""

    def __init__(self, process: Process) -> None:
        alpha_bar = process.schedule.alpha_bar
        self.process, self.log_variance = process, 0.0
        variance = alpha_bar * 0.25 + 1 - alpha_bar
        self.slope = np.sqrt(alpha_bar) * 0.25 / variance
        self.offset = np.zeros_like(alpha_bar)
        if process.prediction_type == "v_prediction":
            # v = √ᾱ ε − √(1−ᾱ) x_0 for jointly Gaussian, zero-mean data
            self.slope = np.sqrt(alpha_bar * (1 - alpha_bar)) * (1 - 0.25) / variance
