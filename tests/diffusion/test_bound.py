"""Every term of the bound against the closed form for Gaussian data, and the whole against the joint Gaussians."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from diffusion.bound import bits_per_dim, bound_term, decoder_term, denoising_term, gaussian_kl, prior_term
from diffusion.errors import InputError
from diffusion.gaussian import log_variance, p_x_prev_given_x_t, q_sample
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import PREDICTION_TYPES, VARIANCE_TYPES, Process, SampleShape
from tests.gaussian import GaussianNetwork

MEAN, STD = 0.3, 0.5
PIXEL = SampleShape(1, 1, 1, 17)
LINEAR = NoiseSchedule.make("linear")
COSINE = NoiseSchedule.make("squaredcos_cap_v2")


def process_of(schedule=LINEAR, **settings):
    return Process(PIXEL, schedule, **({"clip_sample": None} | settings))


def hermite(degree=24):
    """Nodes and weights of the mean over a standard normal number."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(degree)
    return nodes, weights / weights.sum()


def gaussian_data_grid(schedule, timestep):
    """x_start, x_t [M, 1, 1, 1] and weights [M] that integrate over x_0 ~ N(MEAN, STD²) and ε ~ N(0, 1)."""
    nodes, weights = hermite()
    first, second = (axis.reshape(-1, 1, 1, 1) for axis in np.meshgrid(nodes, nodes))
    x_start = MEAN + STD * first
    return x_start, q_sample(schedule, x_start, timestep, second), np.outer(weights, weights).reshape(-1)


def closed_denoising_term(network, timestep):
    """E KL(q(x_{t−1} | x_t, x_0) ‖ p) for the optimal network: what is left is the variance of x_0 given x_t."""
    process, schedule = network.process, network.process.schedule
    beta, small = schedule.betas[timestep], schedule.posterior_variance[timestep]
    alpha_bar, alpha_bar_prev = schedule.alpha_bar[timestep], schedule.alpha_bar_prev[timestep]
    fraction = {"fixed_small": 0.0, "fixed_large": 1.0, "learned_range": (network.log_variance + 1) / 2}
    variance = beta ** fraction[process.variance_type] * small ** (1 - fraction[process.variance_type])
    weight = math.sqrt(alpha_bar_prev) * beta / (1 - alpha_bar)
    data_variance_left = STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)
    ratio = small / variance
    return 0.5 * (ratio - 1 - math.log(ratio) + weight**2 * data_variance_left / variance)


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_denoising_terms_by_quadrature_are_the_closed_form(schedule, prediction_type, variance_type):
    network = GaussianNetwork(
        process_of(schedule, prediction_type=prediction_type, variance_type=variance_type), MEAN, STD
    )
    for timestep in (1, 2, 20, 300, 998, 999):
        x_start, x_t, weights = gaussian_data_grid(schedule, timestep)
        timesteps = np.full(len(x_t), timestep)
        nats = denoising_term(network.process, x_start, x_t, timesteps, network(x_t, timesteps))
        assert weights @ nats == pytest.approx(closed_denoising_term(network, timestep), rel=1e-6, abs=1e-14)


@pytest.mark.parametrize("schedule", [LINEAR, NoiseSchedule.make("linear", 8, 0.05, 0.3)], ids=["1000", "8"])
def test_the_prior_term_by_quadrature_is_the_closed_form(schedule):
    nodes, weights = hermite()
    nats = prior_term(schedule, (MEAN + STD * nodes).reshape(-1, 1, 1, 1))
    alpha_bar = schedule.alpha_bar[-1]
    expected = 0.5 * (alpha_bar * (MEAN**2 + STD**2) - alpha_bar - math.log(1 - alpha_bar))
    assert weights @ nats == pytest.approx(expected, rel=1e-6)


def test_the_prior_term_is_zero_where_nothing_is_left_of_the_data():
    assert prior_term(LINEAR.with_zero_terminal_snr(), np.ones((2, 1, 1, 1))).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
def test_monte_carlo_covers_the_closed_form(variance_type):
    rng = np.random.default_rng(7)
    network = GaussianNetwork(process_of(variance_type=variance_type), MEAN, STD)
    for timestep in (1, 40, 700):
        x_start = MEAN + STD * rng.standard_normal((4000, 1, 1, 1))
        x_t = q_sample(LINEAR, x_start, timestep, rng.standard_normal(x_start.shape))
        timesteps = np.full(len(x_t), timestep)
        nats = denoising_term(network.process, x_start, x_t, timesteps, network(x_t, timesteps))
        standard_error = nats.std(ddof=1) / math.sqrt(len(nats))
        assert abs(nats.mean() - closed_denoising_term(network, timestep)) < 3 * standard_error


def test_the_sum_is_the_divergence_of_the_joint_gaussians():
    """E_q[ln q(x_1, …, x_T | x_0) − ln p(x_1, …, x_T)] from the covariance matrix of the whole chain, no term in it."""
    schedule = NoiseSchedule.make("linear", 6, 0.02, 0.4)
    for variance_type in VARIANCE_TYPES:
        network = GaussianNetwork(process_of(schedule, variance_type=variance_type), MEAN, STD)
        rows = []  # every factor is N(offset + vector·x, variance) with x = (x_0, …, x_T) ~ the joint of q
        for step in range(6):  # q(x_{t+1} | x_t), papers' states 0..6
            vector = np.zeros(7)
            vector[step + 1], vector[step] = 1.0, -math.sqrt(1 - schedule.betas[step])
            rows.append((1.0, vector, 0.0, schedule.betas[step]))
        steps = network.steps(np.arange(5, -1, -1))
        for timestep, (gain, shift, noise_std) in zip(range(5, 0, -1), steps, strict=False):
            vector = np.zeros(7)
            vector[timestep], vector[timestep + 1] = 1.0, -gain  # p(x_{t−1} | x_t) for t > 0: all but the decoder
            rows.append((-1.0, vector, shift, noise_std**2))
        prior = np.zeros(7)
        prior[6] = 1.0
        rows.append((-1.0, prior, 0.0, 1.0))
        # Mean and covariance of (x_0, …, x_T) under q, from one step after the other.
        mean, covariance = np.zeros(7), np.zeros((7, 7))
        mean[0], covariance[0, 0] = MEAN, STD**2
        for step, beta in enumerate(schedule.betas):
            root = math.sqrt(1 - beta)
            mean[step + 1] = root * mean[step]
            covariance[step + 1, : step + 1] = covariance[: step + 1, step + 1] = root * covariance[step, : step + 1]
            covariance[step + 1, step + 1] = (1 - beta) * covariance[step, step] + beta
        divergence = sum(
            sign
            * -0.5
            * (math.log(variance) + (vector @ covariance @ vector + (vector @ mean - shift) ** 2) / variance)
            for sign, vector, shift, variance in rows
        )  # one ln 2π more for q than for p, of x_0's decoder, which neither sum has: 6 factors each
        nodes, weights = hermite()
        total = weights @ prior_term(schedule, (MEAN + STD * nodes).reshape(-1, 1, 1, 1))
        for timestep in range(1, 6):
            x_start, x_t, grid_weights = gaussian_data_grid(schedule, timestep)
            timesteps = np.full(len(x_t), timestep)
            total += grid_weights @ denoising_term(network.process, x_start, x_t, timesteps, network(x_t, timesteps))
        assert total == pytest.approx(divergence, rel=1e-10)


def test_fixed_small_is_the_weighted_error_of_eps():
    """Ho et al. 2020, eq. 12: β²/(2σ²α(1−ᾱ)) ‖ε − ε_θ‖², with nothing beside it when σ² = β̃."""
    rng = np.random.default_rng(0)
    shape = (5, 2, 3, 3)
    process = Process(SampleShape(2, 3, 3), LINEAR, variance_type="fixed_small", clip_sample=None)
    x_start, eps, prediction = rng.uniform(-1, 1, shape), rng.standard_normal(shape), rng.standard_normal(shape)
    timesteps = np.array([1, 5, 50, 500, 999])
    place = timesteps.reshape(-1, 1, 1, 1)
    nats = denoising_term(process, x_start, q_sample(LINEAR, x_start, place, eps), timesteps, prediction)
    beta, alpha, alpha_bar = LINEAR.betas[timesteps], LINEAR.alphas[timesteps], LINEAR.alpha_bar[timesteps]
    weight = beta**2 / (2 * LINEAR.posterior_variance[timesteps] * alpha * (1 - alpha_bar))
    expected = weight * ((eps - prediction) ** 2).reshape(5, -1).sum(axis=1)
    np.testing.assert_allclose(nats, expected, rtol=1e-10)


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_clipping_is_that_of_the_process(value):
    """A prediction far beyond the data, on the right side: clipped, it is right and nothing is left of the term."""
    x_start = np.full((1, 1, 1, 1), value)
    x_t, prediction = np.zeros_like(x_start), np.full_like(x_start, -1e3 * value)
    assert denoising_term(process_of(), x_start, x_t, np.array([10]), prediction)[0] > 100
    assert denoising_term(process_of(clip_sample=1.0), x_start, x_t, np.array([10]), prediction)[0] == 0.0


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
def test_the_decoder_is_a_hand_written_one(variance_type):
    schedule = NoiseSchedule.make("linear", 8, 0.05, 0.3)
    network = GaussianNetwork(process_of(schedule, variance_type=variance_type), MEAN, STD, log_variance=-0.4)
    small, large = schedule.posterior_variance[1], schedule.betas[0]
    variance = small**0.7 * large**0.3 if variance_type == "learned_range" else small
    x_t = np.linspace(-1.2, 1.2, 13).reshape(-1, 1, 1, 1)
    for level in (-1.0, 0.25, 1.0):
        nats = decoder_term(network.process, np.full_like(x_t, level), x_t, network(x_t, np.zeros(13)))
        for i, x in enumerate(x_t.reshape(-1)):
            x_hat = network.x_start_slope[0] * x + network.x_start_offset[0]
            normal = NormalDist(x_hat, math.sqrt(variance))
            below = 0.0 if level == -1.0 else normal.cdf(level - 1 / 16)
            above = 1.0 if level == 1.0 else normal.cdf(level + 1 / 16)
            if above - below > 1e-3:
                assert nats[i] == pytest.approx(-math.log(above - below), rel=1e-11)
            else:
                assert nats[i] > -math.log(2e-3)


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
def test_the_first_variance_is_that_of_index_one(variance_type):
    w = np.array([[-1.0], [1.0]])
    found = np.broadcast_to(log_variance(process_of(variance_type=variance_type), np.array([[0], [0]]), w), (2, 1))
    small, large = np.log(LINEAR.posterior_variance[1]), np.log(LINEAR.betas[0])
    expected = [[small], [large]] if variance_type == "learned_range" else [[small], [small]]
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_mixed_timesteps_are_each_their_own_term():
    rng = np.random.default_rng(1)
    network = GaussianNetwork(process_of(variance_type="learned_range", clip_sample=1.0), MEAN, STD)
    process = network.process
    x_start = rng.integers(0, 17, (6, 1, 1, 1)) / 8.0 - 1.0
    timesteps = np.array([0, 3, 0, 999, 1, 0])
    x_t = q_sample(LINEAR, x_start, timesteps.reshape(-1, 1, 1, 1), rng.standard_normal(x_start.shape))
    prediction = network(x_t, timesteps)
    mixed = bound_term(process, x_start, x_t, timesteps, prediction)
    for i, timestep in enumerate(timesteps):
        one = slice(i, i + 1)
        alone = (
            denoising_term(process, x_start[one], x_t[one], timesteps[one], prediction[one])
            if timestep
            else decoder_term(process, x_start[one], x_t[one], prediction[one])
        )
        assert mixed[i] == alone[0]
    assert bits_per_dim(np.array(64 * math.log(2.0)), 64) == pytest.approx(1.0)


def test_divergences_of_tiny_and_of_nearly_equal_variances():
    # KL = ½(r − 1 − ln r): for r = 1 + δ it is ¼ δ² (1 − ⅔ δ + …), which r − 1 − ln r loses below δ = 1e-8.
    for delta in (1e-12, 1e-8, 1e-4, 9.99e-3, 1.01e-2):
        nats = gaussian_kl(np.zeros(1), np.array([math.log1p(delta)]), np.zeros(1))[0]
        series = sum((-1) ** k * delta**k / k for k in range(2, 12)) / 2
        assert nats == pytest.approx(series, rel=1e-11)
    # Two variances of 1e-290, means one standard deviation apart.
    tiny = math.log(1e-290)
    assert gaussian_kl(np.array([1e-290]), np.array([tiny]), np.array([tiny]))[0] == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize(
    ("timestep", "channels", "message"),
    [
        (np.array([1000]), 1, "timesteps lie in 1000..1000, expected 0..999"),
        (np.array([0]), 1, "its term is decoder_term"),
        (np.array([1.0]), 1, "expected 1 whole numbers"),
        (np.array([5]), 2, "prediction has shape (1, 2, 1, 1), expected (1, 1, 1, 1)"),
    ],
)
def test_what_is_no_term_is_refused(timestep, channels, message):
    x = np.zeros((1, 1, 1, 1))
    with pytest.raises(InputError) as error:
        denoising_term(process_of(), x, x, timestep, np.zeros((1, channels, 1, 1)))
    assert message in str(error.value)


def test_the_reverse_step_is_the_chains():
    """Mean and variance against the steps that `GaussianNetwork` writes out by hand."""
    for variance_type in VARIANCE_TYPES:
        network = GaussianNetwork(process_of(COSINE, variance_type=variance_type), MEAN, STD)
        gain, shift, noise_std = network.steps(np.arange(999, -1, -1))[999 - 123]
        x_t = np.linspace(-2, 2, 5).reshape(-1, 1, 1, 1)
        timesteps = np.full(5, 123)
        reverse = p_x_prev_given_x_t(network.process, x_t, timesteps, network(x_t, timesteps))
        np.testing.assert_allclose(reverse.mean, gain * x_t + shift, rtol=1e-9)
        np.testing.assert_allclose(
            np.exp(0.5 * np.broadcast_to(reverse.log_variance, x_t.shape)), noise_std, rtol=1e-12
        )
