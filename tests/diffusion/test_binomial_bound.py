"""The binomial bound: term by term against all states listed, and K beside it."""

import numpy as np
import pytest

from diffusion.binomial import constant_erasure, logistic, p_x_prev_given_x_t, q_x_t_given_x_start
from diffusion.binomial_bound import OptimalBits, entropy_bits, estimate_bound, kl_bits, step_bits
from diffusion.noise_schedule import NoiseSchedule
from diffusion.normal import LIKELIHOOD, draw_number, noise_words
from tests.binary_enumeration import EnumeratedChain, state_probabilities
from tests.binary_enumeration import entropy_bits as entropy_of_states

NUM_BITS = 3
DATA = np.array([0.3, 0.0, 0.05, 0.15, 0.0, 0.3, 0.2, 0.0])
SCHEDULES = {"constant erasure": constant_erasure(8), "linear": NoiseSchedule.make("linear", 8, 0.05, 0.5)}


class SomeNetwork:
    """Far from optimal: logits that depend on x and t anyhow."""

    def __call__(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        return 3.0 * np.roll(x, 1, axis=-1) - 1.0 - 0.2 * t.reshape(-1, 1, 1, 1) * x


@pytest.fixture(params=SCHEDULES)
def schedule(request) -> NoiseSchedule:
    return SCHEDULES[request.param]


def reverse_matrices(chain: EnumeratedChain, schedule: NoiseSchedule, network) -> list[np.ndarray]:
    matrices = []
    for t in range(schedule.num_train_timesteps):
        logits = network(chain.states.astype(np.float32), np.full(len(chain.states), t, np.float32))
        probability = p_x_prev_given_x_t(schedule, logistic(logits), chain.states, t)
        matrices.append(state_probabilities(probability.reshape(len(chain.states), -1)))
    return matrices


def exact_terms(chain: EnumeratedChain, schedule: NoiseSchedule, network) -> np.ndarray:
    """E of `step_bits` over q(x_0, x_t), all pairs listed: [T]."""
    terms = []
    states = chain.states
    for t in range(schedule.num_train_timesteps):
        logits = network(states.astype(np.float32), np.full(len(states), t, np.float32))  # [x_t, 1, 1, d]
        bits = step_bits(schedule, logits[None], states[:, None], states[None], t)  # [x_0, x_t, 1, 1, d]
        bits = bits.reshape(*bits.shape[:2], -1).sum(axis=2)
        joint = chain.data[:, None] * chain.from_data[t]
        terms.append(float((joint[joint > 0] * bits[joint > 0]).sum()))
    return np.array(terms)


@pytest.mark.parametrize("optimal", [True, False])
def test_the_terms_sum_to_the_bound_by_its_definition(schedule, optimal):
    chain = EnumeratedChain(DATA, schedule.betas)
    network = OptimalBits(schedule, chain.states[DATA > 0], DATA[DATA > 0]) if optimal else SomeNetwork()
    prior = NUM_BITS * (1.0 - float(entropy_bits(np.array(0.5 * (1.0 - schedule.alpha_bar[-1])))))
    exact = chain.bound_bits(reverse_matrices(chain, schedule, network))
    assert prior + exact_terms(chain, schedule, network).sum() == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("optimal", [True, False])
def test_the_bound_is_above_the_exact_likelihood_and_that_above_the_entropy(schedule, optimal):
    chain = EnumeratedChain(DATA, schedule.betas)
    network = OptimalBits(schedule, chain.states[DATA > 0], DATA[DATA > 0]) if optimal else SomeNetwork()
    reverse = reverse_matrices(chain, schedule, network)
    generated = chain.generated(reverse)
    likelihood_bits = -float((DATA[DATA > 0] * np.log2(generated[DATA > 0])).sum())
    bound, entropy = chain.bound_bits(reverse), entropy_of_states(DATA)
    assert bound > likelihood_bits > entropy
    if optimal and schedule == SCHEDULES["constant erasure"]:
        assert bound < entropy + 0.35  # bits that are not independent, taken for such in 8 steps


def test_with_the_true_reverse_kernel_the_bound_is_the_entropy():
    """The oracle against theory: nothing is lost where the reverse kernel is exact and x_T is fair coins."""
    chain = EnumeratedChain(DATA, SCHEDULES["constant erasure"].betas)
    exact = chain.bound_bits([chain.true_reverse(t) for t in range(8)])
    assert exact == pytest.approx(entropy_of_states(DATA), abs=1e-9)


def test_no_other_logits_have_a_smaller_term(schedule):
    chain = EnumeratedChain(DATA, schedule.betas)
    optimum = OptimalBits(schedule, chain.states[DATA > 0], DATA[DATA > 0])
    least = exact_terms(chain, schedule, optimum)
    for shift in (-0.3, 0.3):

        def shifted(x, t, shift=shift):
            return np.clip(optimum(x, t), -30.0, 30.0) + shift * (1.0 + x)

        assert (exact_terms(chain, schedule, shifted) > least).all()


def test_the_estimate_covers_the_exact_value(schedule):
    chain, network, num = EnumeratedChain(DATA, schedule.betas), SomeNetwork(), 20_000
    x_start = chain.states[np.random.default_rng(0).choice(len(DATA), size=num, p=DATA)]
    bound = estimate_bound(schedule, network, x_start, seed=5)
    exact = exact_terms(chain, schedule, network)
    errors = bound.terms.std(axis=1, ddof=1) / np.sqrt(num)
    assert (np.abs(bound.terms.mean(axis=1) - exact) < 4.0 * errors + 1e-12).all()
    assert abs(bound.bits - bound.prior - exact.sum()) < 3.0 * bound.standard_error
    assert 0.0 < bound.standard_error < 0.03


def test_the_estimate_does_not_depend_on_the_batch(schedule):
    x_start = EnumeratedChain(DATA, schedule.betas).states
    whole = estimate_bound(schedule, SomeNetwork(), x_start, seed=1, start=40)
    part = estimate_bound(schedule, SomeNetwork(), x_start[3:5], seed=1, start=43)
    np.testing.assert_allclose(whole.terms[:, 3:5], part.terms, rtol=1e-12)
    other = estimate_bound(schedule, SomeNetwork(), x_start, seed=2, start=40)
    assert not np.array_equal(whole.terms, other.terms)


def test_every_timestep_has_draws_of_its_own_from_stream_1(schedule):
    x_start = EnumeratedChain(DATA, schedule.betas).states
    seen = {}

    def watching(x, t):
        seen[int(t[0])] = x
        return SomeNetwork()(x, t)

    estimate_bound(schedule, watching, x_start, seed=6, start=20)
    assert sorted(seen) == list(range(8))
    for t, x_t in seen.items():
        for place in range(len(x_start)):
            words = noise_words(NUM_BITS, 6, 20 + place, draw_number(t, LIKELIHOOD))
            probability = q_x_t_given_x_start(schedule, x_start[place], t).reshape(-1)
            np.testing.assert_array_equal(x_t[place].reshape(-1), words < np.floor(probability * 2.0**32))


def test_the_first_step_takes_any_logit(schedule):
    """−log₂ of the logistic function where 1 − p is 0 in float64, and where p is."""
    bits = step_bits(schedule, np.array([-800.0, -800.0, 60.0]), np.array([1, 0, 1]), np.array([1, 0, 1]), 0)
    np.testing.assert_allclose(bits, [800.0 / np.log(2.0), 0.0, np.exp(-60.0) / np.log(2.0)], rtol=1e-12)


def test_K_differs_from_the_bound_by_the_last_step_alone(schedule):
    """K's last step is the forward kernel run once more; with it in place of the network's the bound is −K, exactly."""
    chain, network = EnumeratedChain(DATA, schedule.betas), SomeNetwork()
    bound = estimate_bound(schedule, network, np.repeat(chain.states, 2, axis=0))
    last_step = bound.entropy_x_1_given_x_start - bound.terms[0].mean()
    assert bound.bits + bound.K == pytest.approx(-last_step, abs=1e-12)
    flip = schedule.betas[0] / 2.0
    expected = -NUM_BITS * (flip * np.log2(flip) + (1.0 - flip) * np.log2(1.0 - flip))
    assert bound.entropy_x_1_given_x_start == pytest.approx(expected, rel=1e-12)
    assert bound.entropy_prior == NUM_BITS
    # The exact −K: E log₂ q/p with p(x_0 | x_1) = q(x_1 | x_0), which is symmetric.
    reverse = [chain.kernels[0].T, *reverse_matrices(chain, schedule, network)[1:]]
    terms = exact_terms(chain, schedule, network)
    exact = terms[1:].sum() + bound.prior + bound.entropy_x_1_given_x_start
    assert exact == pytest.approx(chain.bound_bits(reverse), abs=1e-9)


def test_divergence_and_entropy_of_certain_bits():
    assert kl_bits(np.array([0.0, 1.0, 0.5]), np.array([0.5, 0.5, 0.5])).tolist() == [1.0, 1.0, 0.0]
    assert kl_bits(np.array(0.5), np.array(0.0)) == np.inf
    assert entropy_bits(np.array([0.0, 0.5, 1.0])).tolist() == [0.0, 1.0, 0.0]


def test_one_sample_has_no_standard_error(schedule):
    bound = estimate_bound(schedule, SomeNetwork(), EnumeratedChain(DATA, schedule.betas).states[:1])
    assert np.isnan(bound.standard_error)
