"""The binomial chain against all 2^d states listed, its draws against the generator's words, and its description."""

import itertools
import json

import numpy as np
import pytest

from diffusion import binomial
from diffusion.binomial import BinomialProcess, constant_erasure
from diffusion.binomial_bound import OptimalBits
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.normal import BINOMIAL, draw_number, noise_words
from diffusion.process import Process, SampleShape
from tests.binary_enumeration import EnumeratedChain, all_states, state_probabilities, total_variation

NUM_BITS = 4
RNG = np.random.default_rng(1)
DATA = RNG.dirichlet(np.full(2**NUM_BITS, 0.3))
SCHEDULES = {
    "constant erasure": binomial.constant_erasure(6),
    "linear": NoiseSchedule.make("linear", 6, 0.05, 0.6),
    "one step": binomial.constant_erasure(1),
}
PROCESS = BinomialProcess(SampleShape(1, 1, 20, levels=2), constant_erasure(50), "abc")


@pytest.fixture(params=SCHEDULES)
def schedule(request) -> NoiseSchedule:
    return SCHEDULES[request.param]


def optimal_reverse(chain: EnumeratedChain, schedule: NoiseSchedule) -> list[np.ndarray]:
    """p(x_{t−1} | x_t) of the best network, [x_t, x_{t−1}] for every t."""
    network = OptimalBits(schedule, chain.states[chain.data > 0], chain.data[chain.data > 0])
    matrices = []
    for t in range(schedule.num_train_timesteps):
        logits = network(chain.states.astype(np.float32), np.full(len(chain.states), t, np.float32))
        probability = binomial.p_x_prev_given_x_t(schedule, binomial.logistic(logits), chain.states, t)
        matrices.append(state_probabilities(probability.reshape(len(chain.states), -1)))
    return matrices


def test_every_step_erases_the_same_fraction():
    np.testing.assert_allclose(binomial.constant_erasure(5).alpha_bar, [0.8, 0.6, 0.4, 0.2, 0.0], atol=1e-15)
    assert binomial.constant_erasure(2000).alpha_bar[-1] == 0.0
    with pytest.raises(InputError, match="num_train_timesteps is 0, expected at least 1"):
        binomial.constant_erasure(0)


def test_the_forward_kernel_and_its_closed_form_are_the_listed_ones(schedule):
    chain = EnumeratedChain(DATA, schedule.betas)
    states = chain.states
    for t in range(schedule.num_train_timesteps):
        step = state_probabilities(binomial.q_x_t_given_x_prev(schedule, states, t).reshape(len(states), -1))
        np.testing.assert_allclose(step, chain.kernels[t], atol=1e-14)
        jump = state_probabilities(binomial.q_x_t_given_x_start(schedule, states, t).reshape(len(states), -1))
        np.testing.assert_allclose(jump, chain.from_data[t], atol=1e-14)


def test_the_posterior_is_bayes_rule(schedule):
    chain = EnumeratedChain(DATA, schedule.betas)
    # At the paper's t = 1 most pairs (x_0, x_1) are possible, as a bit flips with probability β/2 > 0.
    for t in range(schedule.num_train_timesteps):
        probability = binomial.q_x_prev_given_x_t(schedule, chain.states[:, None], chain.states[None], t)
        flat = state_probabilities(probability.reshape(*probability.shape[:2], -1))
        np.testing.assert_allclose(flat, chain.posterior(t), atol=1e-13)


def test_timesteps_broadcast(schedule):
    states, last = all_states(NUM_BITS), schedule.num_train_timesteps - 1
    timesteps = np.arange(len(states)).reshape(-1, 1, 1, 1) % (last + 1)
    together = binomial.q_x_prev_given_x_t(schedule, states[::-1], states, timesteps)
    for place, t in enumerate(timesteps.reshape(-1)):
        alone = binomial.q_x_prev_given_x_t(schedule, states[::-1][place], states[place], int(t))
        np.testing.assert_array_equal(together[place], alone)


def test_the_optimal_networks_step_has_the_true_reverse_kernels_bits(schedule):
    chain = EnumeratedChain(DATA, schedule.betas)
    for t, matrix in enumerate(optimal_reverse(chain, schedule)):
        true_bits = chain.bits_given(chain.true_reverse(t))
        np.testing.assert_allclose(chain.bits_given(matrix), true_bits, atol=1e-12)


def test_the_exact_reverse_chain_gives_back_the_data(schedule):
    """The listed kernels run backwards, no network: a check of the oracle itself, where ᾱ ends at 0."""
    chain = EnumeratedChain(DATA, schedule.betas)
    reverse = [chain.true_reverse(t) for t in range(schedule.num_train_timesteps)]
    rest = total_variation(chain.marginals[-1], np.full(2**NUM_BITS, 2.0**-NUM_BITS))
    assert total_variation(chain.generated(reverse), DATA) <= rest + 1e-12


def test_independent_bits_cost_less_with_more_steps():
    """Total variation to the data, exact, falls as 1/T; with one step it is that of independent bits."""
    variations = []
    for num_timesteps in (1, 10, 20, 40, 80):
        schedule = binomial.constant_erasure(num_timesteps)
        chain = EnumeratedChain(DATA, schedule.betas)
        variations.append(total_variation(chain.generated(optimal_reverse(chain, schedule)), DATA))
    chain = EnumeratedChain(DATA, np.array([1.0]))
    independent = state_probabilities(chain.bits_given(DATA))
    assert variations[0] == pytest.approx(total_variation(independent, DATA), rel=1e-9)
    ratios = [before / after for before, after in itertools.pairwise(variations[1:])]
    assert all(1.8 < ratio < 2.2 for ratio in ratios), variations
    assert variations[-1] < 0.01


def test_sampling_draws_from_the_listed_distribution():
    """40,000 samples of the NumPy loop against p(x_0) by matrices: χ² with 15 degrees of freedom."""
    schedule, num = SCHEDULES["constant erasure"], 40_000
    chain = EnumeratedChain(DATA, schedule.betas)
    expected = num * chain.generated(optimal_reverse(chain, schedule))
    network = OptimalBits(schedule, chain.states, chain.data)
    x = binomial.reverse_loop(schedule, network, binomial.initial_bits((num, 1, 1, NUM_BITS), seed=3, start=0), seed=3)
    assert x.dtype == np.uint8
    places = x.reshape(num, -1) @ (1 << np.arange(NUM_BITS)[::-1])
    counts = np.bincount(places, minlength=2**NUM_BITS)
    assert ((counts - expected) ** 2 / expected).sum() < 44.3  # one in ten thousand is larger


def test_noise_is_stream_2_by_seed_index_and_timestep():
    shape, seed, start = (2, 3, 1), 2**40 + 7, 2**33 - 1
    words = binomial.bit_words(shape, seed, range(start, start + 3), draw_number(5, BINOMIAL))
    for place in range(3):
        expected = noise_words(6, seed, start + place, draw_number(5, BINOMIAL))
        np.testing.assert_array_equal(words[place].reshape(-1), expected)
    x_T = binomial.initial_bits((1, *shape), seed, start)
    half = noise_words(6, seed, start, draw_number(None, BINOMIAL)) < 2**31
    np.testing.assert_array_equal(x_T[0].reshape(-1), half)


def test_every_step_compares_its_own_words_with_the_reverse_probability():
    schedule, seed, start = SCHEDULES["linear"], 11, 50
    network = OptimalBits(schedule, all_states(NUM_BITS), DATA)
    x = binomial.initial_bits((2, 1, 1, NUM_BITS), seed, start)
    states = list(binomial.reverse_states(schedule, network, x, seed, start))
    assert len(states) == schedule.num_train_timesteps
    for t, state in zip(reversed(range(schedule.num_train_timesteps)), states, strict=True):
        logits = network(x, np.full(2, t))
        probability = binomial.p_x_prev_given_x_t(schedule, binomial.logistic(logits), x, t)
        for place in range(2):
            words = noise_words(NUM_BITS, seed, start + place, draw_number(t, BINOMIAL))
            expected = words < np.floor(probability[place].reshape(-1) * 2.0**32)
            np.testing.assert_array_equal(state[place].reshape(-1), expected)
        x = state


def test_a_word_is_a_one_below_its_probability():
    words = np.array([0, 2**31 - 1, 2**31, 2**32 - 1], dtype=np.uint32)
    assert binomial.bits_from_words(words, np.array(0.5)).tolist() == [1, 1, 0, 0]
    assert binomial.bits_from_words(words, np.array(0.0)).tolist() == [0, 0, 0, 0]
    assert binomial.bits_from_words(words, np.array(1.0)).tolist() == [1, 1, 1, 1]
    assert binomial.bits_from_words(words, np.array(2.0**-32)).tolist() == [1, 0, 0, 0]


def test_a_sample_does_not_depend_on_its_batch():
    schedule = SCHEDULES["linear"]
    network = OptimalBits(schedule, all_states(NUM_BITS), DATA)
    whole = binomial.reverse_loop(schedule, network, binomial.initial_bits((7, 1, 1, NUM_BITS), 9, 100), 9, 100)
    part = binomial.reverse_loop(schedule, network, binomial.initial_bits((2, 1, 1, NUM_BITS), 9, 103), 9, 103)
    np.testing.assert_array_equal(whole[3:5], part)


def test_certain_logits_and_errors():
    assert binomial.logistic(np.array([-np.inf, 0.0, np.inf])).tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(InputError, match="sample index is -1"):
        binomial.bit_words((4,), 0, [-1], 0)
    with pytest.raises(InputError, match="seed is"):
        binomial.bit_words((4,), 2**64, [0], 0)
    x = binomial.initial_bits((2, 1, 1, 4), 0, 10)

    def broken(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        logits = np.zeros_like(x)
        logits[1, 0, 0, 2] = np.nan
        return logits

    with pytest.raises(InputError, match="the prediction for sample 11 at timestep 5 is not a number"):
        binomial.reverse_loop(SCHEDULES["linear"], broken, x, start=10)


def test_json_and_back():
    again = BinomialProcess.from_json_text(json.dumps(PROCESS.to_json()))
    assert again == PROCESS
    np.testing.assert_array_equal(again.schedule.betas, PROCESS.schedule.betas)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": None}, "file: describes no binomial process .kind is None.; sample from a Gaussian one"),
        ({"format": 2}, "file: process format is 2, this version reads 1"),
        ({"prediction_type": "epsilon"}, "file: prediction_type is 'epsilon', expected 'x_start_logit'"),
        ({"sample": 3}, "file: 'sample' and 'schedule' must be JSON objects"),
        ({"schedule": {"kind": "explicit", "betas": [2.0]}}, "file: noise schedule: beta.0. is"),
        ({"sample": {"channels": 1, "height": 1, "width": 20, "levels": 17}}, "file: binomial process: levels is 17"),
    ],
)
def test_what_cannot_be_read_is_named(change, message):
    with pytest.raises(InputError, match=message):
        BinomialProcess.from_json({**PROCESS.to_json(), **change}, "file")


def test_no_json_and_no_object():
    with pytest.raises(InputError, match="file: not JSON"):
        BinomialProcess.from_json_text("{", "file")
    with pytest.raises(InputError, match="found list"):
        BinomialProcess.from_json([], "file")


def test_gaussian_and_binomial_are_never_mistaken_for_each_other():
    gaussian = Process(SampleShape(1, 1, 20, levels=2), NoiseSchedule.make("linear"))
    with pytest.raises(InputError, match="describes no binomial process"):
        BinomialProcess.from_json(gaussian.to_json())
    with pytest.raises(InputError, match="describes a binomial process"):
        Process.from_json(PROCESS.to_json())
