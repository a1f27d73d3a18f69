"""Annealed Langevin dynamics: sampling with the score alone (Song & Ermon 2019, section 4.3).

At every noise level, from the noisiest down, x takes several steps uphill on ln q(x_t) with noise of its own:

    x ← x + ½ δ ∇ ln q(x_t) + √δ z,    δ = relative_step · (1 − ᾱ_t)

No step is accepted or refused, so for Gaussian data with Var[x_t] = v the state settles at variance v/(1 − δ/4v) rather
than v; it takes a few times v/δ steps to forget the level before.

Tested on Gaussian data, where every state's mean and variance are known; with Tweedie's formula.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.normal import MAX_REPEATS, draw_number, normal_batch
from diffusion.prediction import convert_prediction, from_x_start, to_x_start
from diffusion.process import PREDICTION_TYPES, Process, SampleShape
from diffusion.reference_loop import Predict, initial_noise
from diffusion.spacing import check_timesteps
from tests.gaussian import GaussianNetwork

# Song & Ermon 2019, section 5: ε = 2e-5 at σ_L = 0.01, so that a step's variance is 0.2 of the level's.
RELATIVE_STEP = 0.2
MEAN, STD = 0.3, 0.5
LINEAR = NoiseSchedule.make("linear")
LEVELS = np.array([999, 600, 300, 100, 20])


def annealed_langevin(
    process: Process,
    predict: Predict,
    x: np.ndarray,
    timesteps: np.ndarray,
    steps_per_level: int = 100,
    relative_step: float = RELATIVE_STEP,
    denoise: bool = True,
    seed: int = 0,
    start: int = 0,
) -> np.ndarray:
    """Run algorithm 1 of Song & Ermon 2019 over the noise levels of the given timesteps, in float64.

    The paper's state is x_t/√ᾱ_t, data plus noise of variance σ² = (1 − ᾱ_t)/ᾱ_t, and stays as it is from one level to
    the next; so x is rescaled there. Its step α_i = ε σ_i²/σ_L² is δ/ᾱ_t with relative_step = ε/σ_L².

    Args:
        process: of the network; x_start is clipped as it says, unless the bound is None.
        predict: the network, of any prediction type.
        x: [N, C, H, W], the state at the first level, such as `diffusion.reference_loop.initial_noise`.
        timesteps: the levels, strictly descending, ᾱ > 0.
        steps_per_level: 1..256.
        relative_step: δ/(1 − ᾱ_t), in (0, 4): beyond it the steps overshoot.
        denoise: end with E[x_0 | x_t] by Tweedie's formula (Luo 2022, eq. 133), else with x_t/√ᾱ_t, noise and all.
        seed, start: of the noise; x[0] has the sample index `start`. Step k at a timestep takes the draw's repeat k.

    Returns:
        float64 [N, C, H, W], data.

    Raises:
        InputError: a number outside its range, or a level without signal.
    """
    if not 1 <= steps_per_level <= MAX_REPEATS:
        raise InputError(f"steps_per_level is {steps_per_level}, expected 1..{MAX_REPEATS}")
    if not 0.0 < relative_step < 4.0:
        raise InputError(f"relative_step is {relative_step}, expected a number between 0 and 4")
    alpha_bars = process.schedule.alpha_bar
    levels = check_timesteps(np.asarray(timesteps), len(alpha_bars))
    if (alpha_bars[levels] == 0.0).any():
        raise InputError("a timestep has alpha_bar = 0, where x_t says nothing of the data; leave it out")
    x = np.asarray(x, np.float64)
    seeds, indices = [seed] * len(x), range(start, start + len(x))
    alpha_bar = alpha_bars[levels[0]]
    for timestep in levels:
        x = x * np.sqrt(alpha_bars[timestep] / alpha_bar)
        alpha_bar = alpha_bars[timestep]
        step_size = relative_step * (1.0 - alpha_bar)
        for repeat in range(steps_per_level):
            score = from_x_start(predicted_x_start(process, predict, x, int(timestep)), "score", x, alpha_bar)
            z = normal_batch(x.shape[1:], seeds, indices, draw_number(int(timestep), repeat=repeat))
            x = x + 0.5 * step_size * score + np.sqrt(step_size) * z
    if denoise:
        return predicted_x_start(process, predict, x, int(levels[-1]))
    return np.asarray(x / np.sqrt(alpha_bar))


def predicted_x_start(process: Process, predict: Predict, x_t: np.ndarray, timestep: int) -> np.ndarray:
    """E[x_0 | x_t] as the network has it, clipped as the process says: Tweedie's formula (Luo 2022, eq. 133)."""
    prediction = predict(x_t, np.full(len(x_t), timestep, dtype=x_t.dtype))[:, : x_t.shape[1]]
    x_start = to_x_start(prediction, process.prediction_type, x_t, process.schedule.alpha_bar[timestep])
    clip = process.clip_sample
    return x_start if clip is None else np.clip(x_start, -clip, clip)


def network_of(prediction_type="epsilon", size=1):
    process = Process(SampleShape(1, size, size), LINEAR, prediction_type=prediction_type, clip_sample=None)
    return GaussianNetwork(process, MEAN, STD)


def known_moments(levels, steps, relative_step):
    """Mean and variance of x/√ᾱ after the last level, from the linear recursion that Gaussian data make of it."""
    mean, variance, alpha_bar = 0.0, 1.0, LINEAR.alpha_bar[levels[0]]
    for timestep in levels:
        rescale = math.sqrt(LINEAR.alpha_bar[timestep] / alpha_bar)
        mean, variance, alpha_bar = rescale * mean, rescale**2 * variance, LINEAR.alpha_bar[timestep]
        target_mean, target_variance = math.sqrt(alpha_bar) * MEAN, alpha_bar * STD**2 + 1 - alpha_bar
        step_size = relative_step * (1 - alpha_bar)
        gain = 1 - step_size / (2 * target_variance)
        for _ in range(steps):
            mean = target_mean + gain * (mean - target_mean)
            variance = gain**2 * variance + step_size
    return mean / math.sqrt(alpha_bar), variance / alpha_bar


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_moments_are_those_of_the_linear_recursion(prediction_type):
    network = network_of(prediction_type, size=16)
    x = initial_noise((16, 1, 16, 16), seed=3, start=0)
    x = annealed_langevin(network.process, network, x, LEVELS, 12, 0.5, denoise=False, seed=3)
    mean, variance = known_moments(LEVELS, 12, 0.5)
    assert abs(x.mean() - mean) < 4 * math.sqrt(variance / x.size)
    assert abs(x.var() - variance) < 4 * variance * math.sqrt(2 / x.size)


def test_the_stationary_variance_is_larger_by_the_step():
    """Unadjusted steps of size δ settle at v/(1 − δ/4v): with large steps, plainly seen."""
    network = network_of(size=32)
    alpha_bar = LINEAR.alpha_bar[500]
    variance = alpha_bar * STD**2 + 1 - alpha_bar
    x = initial_noise((16, 1, 32, 32), seed=1, start=0)
    x = annealed_langevin(network.process, network, x, np.array([500]), 40, 2.0, denoise=False, seed=1)
    x = x * math.sqrt(alpha_bar)
    settled = variance / (1 - 2.0 * (1 - alpha_bar) / (4 * variance))
    assert settled > 1.5 * variance
    assert abs(x.var() - settled) < 4 * settled * math.sqrt(2 / x.size)
    assert abs(x.mean() - math.sqrt(alpha_bar) * MEAN) < 4 * math.sqrt(settled / x.size)


def test_small_steps_and_many_of_them_reach_the_data():
    network = network_of(size=16)
    levels = np.array([999, 900, 800, 700, 600, 500, 400, 300, 200, 100, 50, 20, 0])
    mean, variance = known_moments(levels, 256, 0.2)
    assert mean == pytest.approx(MEAN, abs=0.05)
    x = initial_noise((4, 1, 16, 16), seed=5, start=0)
    x = annealed_langevin(network.process, network, x, levels, 256, 0.2, denoise=False, seed=5)
    assert abs(x.mean() - mean) < 4 * math.sqrt(variance / x.size)
    assert abs(x.var() - variance) < 4 * variance * math.sqrt(2 / x.size)


def test_every_step_has_noise_of_its_own_and_the_sample_index_decides_it():
    network = network_of(size=2)
    x = initial_noise((3, 1, 2, 2), seed=9, start=4)
    found = annealed_langevin(network.process, network, x, np.array([700, 40]), 3, 0.3, seed=9, start=4)
    # The same by hand: the score of a Gaussian, and the draws of both levels with repeats 0, 1, 2.
    by_hand, alpha_bar = x.astype(np.float64), LINEAR.alpha_bar[700]
    for timestep in (700, 40):
        by_hand = by_hand * math.sqrt(LINEAR.alpha_bar[timestep] / alpha_bar)
        alpha_bar = LINEAR.alpha_bar[timestep]
        step_size, variance = 0.3 * (1 - alpha_bar), alpha_bar * STD**2 + 1 - alpha_bar
        for repeat in range(3):
            z = normal_batch((1, 2, 2), [9] * 3, [4, 5, 6], draw_number(timestep, repeat=repeat)).astype(float)
            score = -(by_hand - math.sqrt(alpha_bar) * MEAN) / variance
            by_hand = by_hand + 0.5 * step_size * score + math.sqrt(step_size) * z
    variance = alpha_bar * STD**2 + 1 - alpha_bar
    posterior = MEAN + math.sqrt(alpha_bar) * STD**2 / variance * (by_hand - math.sqrt(alpha_bar) * MEAN)
    np.testing.assert_allclose(found, posterior, rtol=1e-9, atol=1e-12)
    alone = annealed_langevin(network.process, network, x[2:], np.array([700, 40]), 3, 0.3, seed=9, start=6)
    np.testing.assert_array_equal(alone, found[2:])


def test_tweedie_gives_the_posterior_mean_of_data_that_are_not_gaussian():
    """Data −0.8 or 0.6: ln q(x_t) differentiated numerically, E[x_0 | x_t] by Bayes' rule (Luo 2022, eq. 133)."""
    atoms, probabilities = np.array([-0.8, 0.6]), np.array([0.3, 0.7])
    x_t = np.linspace(-2, 2, 41)
    for timestep in (50, 300, 800):
        alpha_bar = LINEAR.alpha_bar[timestep]

        def joint(x, alpha_bar=alpha_bar):
            distance = x[:, None] - math.sqrt(alpha_bar) * atoms
            return probabilities * np.exp(-(distance**2) / (2 * (1 - alpha_bar)))

        step = 1e-5
        score = (np.log(joint(x_t + step).sum(1)) - np.log(joint(x_t - step).sum(1))) / (2 * step)
        posterior_mean = joint(x_t) @ atoms / joint(x_t).sum(1)
        np.testing.assert_allclose(to_x_start(score, "score", x_t, alpha_bar), posterior_mean, atol=1e-6)
        # And the score is −E[ε | x_t]/√(1−ᾱ), there and back.
        eps = (x_t - math.sqrt(alpha_bar) * posterior_mean) / math.sqrt(1 - alpha_bar)
        np.testing.assert_allclose(convert_prediction(eps, "epsilon", "score", x_t, alpha_bar), score, atol=1e-4)
        np.testing.assert_allclose(convert_prediction(score, "score", "epsilon", x_t, alpha_bar), eps, atol=1e-4)


def test_the_clip_is_that_of_the_process():
    process = Process(SampleShape(1, 1, 1), LINEAR, clip_sample=0.4)
    wild = np.full((1, 1, 1, 1), 50.0)
    assert predicted_x_start(process, lambda x, t: np.zeros_like(x), wild, 10) == 0.4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps_per_level": 257}, "steps_per_level is 257, expected 1..256"),
        ({"relative_step": 4.0}, "relative_step is 4.0"),
        ({"timesteps": np.array([5, 9])}, "strictly descending"),
    ],
)
def test_what_cannot_run_is_refused(settings, message):
    network = network_of()
    arguments = {"timesteps": np.array([9, 5])} | settings
    with pytest.raises(InputError, match=message):
        annealed_langevin(network.process, network, np.zeros((1, 1, 1, 1)), **arguments)
