"""What must hold between chains, whatever the sampler: nothing here knows a coefficient."""

from dataclasses import replace

import numpy as np
import pytest

from diffusion.noise_schedule import NoiseSchedule
from diffusion.prediction import x_start_coefficients
from diffusion.process import PREDICTION_TYPES
from diffusion.reference_loop import initial_noise, reference_loop, reference_states
from diffusion.samplers import SAMPLERS, make_table
from diffusion.step_table import COLUMNS
from tests.diffusion.samplers.networks import RandomNetwork, a_process

SUBSET = [999, 700, 650, 300, 40, 3]
DETERMINISTIC = [name for name, method in SAMPLERS.items() if not method.stochastic]


def start(process, num=3):
    return initial_noise((num, *process.sample.chw), 1, 0).astype(np.float64)


@pytest.mark.parametrize("kind", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("timesteps", [None, SUBSET, [999, 998, 1, 0], [400]])
def test_ddim_with_eta_1_is_ddpm_with_fixed_small(kind, timesteps):
    process = a_process(schedule=NoiseSchedule.make(kind), clip_sample=1.0)
    ours, ddpm = (
        make_table(process, name, timesteps=timesteps, eta=eta) for name, eta in (("ddim", 1), ("ddpm", None))
    )
    np.testing.assert_allclose(ours.coefficients, ddpm.coefficients, rtol=1e-11, atol=1e-12)


def test_dpmpp_sde_2m_without_its_extrapolation_is_ddpm():
    process = a_process(clip_sample=1.0)
    ours, ddpm = (make_table(process, name, timesteps=SUBSET) for name in ("dpmpp_sde_2m", "ddpm"))
    np.testing.assert_allclose(ours.column("b") + ours.column("c1"), ddpm.column("b"), rtol=1e-13)
    for name in ("a", "s"):
        np.testing.assert_allclose(ours.column(name), ddpm.column(name), rtol=1e-13)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("clip_sample", [None, 0.3])
def test_one_step_returns_the_predicted_x_start(sampler, clip_sample):
    process = a_process(clip_sample=clip_sample)
    table, network, x = make_table(process, sampler, 1), RandomNetwork(process), start(process)
    (state,) = reference_states(table, network, x)
    u, v = x_start_coefficients("epsilon", process.schedule.alpha_bar[999])
    expected = u * x + v * network(x, np.full(len(x), 999))
    if clip_sample:
        expected = np.clip(expected, -clip_sample, clip_sample)
    np.testing.assert_allclose(state.x, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_first_and_the_last_of_two_steps_are_first_order(sampler):
    process = a_process(clip_sample=1.0)
    first_order = make_table(process, "ddpm" if SAMPLERS[sampler].stochastic else "ddim", timesteps=[999, 300])
    network, x = RandomNetwork(process), start(process)
    ours, expected = (
        reference_loop(table, network, x) for table in (make_table(process, sampler, timesteps=[999, 300]), first_order)
    )
    # UniPC's corrector does not move the last state: there its row is x_start alone.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_x_start_that_never_changes_is_reached(sampler):
    # All methods are exact here, so every order, history and corrector must agree with the first-order solution.
    process = a_process(prediction_type="sample")
    x = start(process)
    x_start = np.linspace(-1, 1, x[0].size).reshape(x[0].shape)
    tables = [make_table(process, name, 12) for name in (sampler, "ddpm" if SAMPLERS[sampler].stochastic else "ddim")]
    ours, expected = ([s.x for s in reference_states(table, lambda x, t: 0 * x + x_start, x)] for table in tables)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours[-1], x_start + 0 * x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_may_be_permuted_and_split(sampler):
    process = a_process(clip_sample=1.0)
    table, network, x = make_table(process, sampler, timesteps=SUBSET), RandomNetwork(process), start(process)
    together = reference_loop(table, network, x, seed=4)
    for place in (2, 0):  # alone, at its own sample index
        alone = reference_loop(table, network, x[place : place + 1], seed=4, start=place)
        np.testing.assert_allclose(alone[0], together[place], rtol=0, atol=1e-12)
    if not SAMPLERS[sampler].stochastic:
        np.testing.assert_allclose(reference_loop(table, network, x[[2, 0, 1]]), together[[2, 0, 1]], atol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_symmetric_data_give_symmetric_chains(sampler):
    process = a_process(clip_sample=0.7)
    table = make_table(process, sampler, timesteps=SUBSET)
    quiet = np.where(np.array(COLUMNS) == "s", 0.0, table.coefficients)
    network, x = RandomNetwork(process, odd=True), start(process)
    ours, mirrored = (reference_loop(replace(table, coefficients=quiet), network, sign * x) for sign in (1, -1))
    np.testing.assert_array_equal(ours, -mirrored)
    assert np.abs(ours).max() > 0.1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_subset_has_the_alpha_bar_of_the_full_chain(sampler):
    process = a_process()
    expected = x_start_coefficients("epsilon", process.schedule.alpha_bar)
    for timesteps in (SUBSET, np.arange(1000)[::-1]):
        table = make_table(process, sampler, timesteps=timesteps)
        for name, values in zip("uv", expected, strict=True):
            np.testing.assert_array_equal(table.column(name), values[timesteps])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("clip_sample", [None, 0.6])
def test_a_network_gives_the_same_chain_whatever_it_predicts(sampler, clip_sample):
    chains = []
    for prediction_type in PREDICTION_TYPES:
        process = a_process(prediction_type=prediction_type, clip_sample=clip_sample)
        table = make_table(process, sampler, 8)  # RandomNetwork has one x_start whatever its type
        chains.append(reference_loop(table, RandomNetwork(process), start(process)))
    np.testing.assert_allclose(chains, np.broadcast_to(chains[0], np.shape(chains)), rtol=0, atol=1e-11)


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, "dpmpp_sde_2m"])
def test_only_ddpm_reads_a_learned_variance(sampler):
    process = a_process(variance_type="learned_range")
    table, network, x = make_table(process, sampler, 6), RandomNetwork(process), start(process)
    assert not table.learned

    def without_w(x, t):
        return network(x, t)[:, :1]

    np.testing.assert_array_equal(reference_loop(table, network, x), reference_loop(table, without_w, x))
    assert make_table(process, "ddpm", 6).learned


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_zero_terminal_snr_is_the_limit_of_a_small_one(sampler, prediction_type):
    def tables(last_alpha_bar):
        alpha_bar = np.append(NoiseSchedule.make("linear").alpha_bar[:-1:50], last_alpha_bar)
        betas = 1 - alpha_bar / np.append(1, alpha_bar[:-1])
        schedule = NoiseSchedule.explicit(betas) if last_alpha_bar == 0 else exact_schedule(alpha_bar)
        return make_table(a_process(schedule=schedule, prediction_type=prediction_type, clip_sample=1.0), sampler)

    limit = tables(0.0)
    # The second row extrapolates over h_prev = λ − λ_T, which grows like −½ ln ᾱ_T: 34 and 345.
    near, nearer = (np.abs(tables(small).coefficients - limit.coefficients).max() for small in (1e-30, 1e-300))
    assert nearer < 0.02
    assert nearer <= near / 5 + 1e-14
    process = a_process(schedule=NoiseSchedule.make("linear").with_zero_terminal_snr(), prediction_type=prediction_type)
    x_0 = reference_loop(make_table(process, sampler, 10), RandomNetwork(process), start(process))
    assert np.isfinite(x_0).all()


def exact_schedule(alpha_bar):
    """A schedule with these ᾱ, also where 1 − β rounds: its product is replaced by them."""
    schedule = NoiseSchedule.explicit(np.minimum(1 - alpha_bar / np.append(1, alpha_bar[:-1]), 1 - 1e-16))
    object.__setattr__(schedule, "alpha_bar", alpha_bar)
    return schedule
