"""The plan: every timestep is reached, the weights are those of its probability, no draw is used twice."""

import numpy as np
import pytest

from benchmarks.likelihood.timestep_plan import (
    UNIFORM_SHARE,
    make_plan,
    most_evaluations,
    pilot_evaluations,
    timestep_probability,
)
from diffusion.errors import InputError

T = 200


def falling_probability():
    pilot = pilot_evaluations(10, T, 4000)
    return timestep_probability(pilot, 5.0 / pilot.timestep**1.5, T)


def test_probabilities_follow_the_pilot_and_reach_every_timestep():
    probability = falling_probability()
    assert probability[0] == 0.0
    assert probability.sum() == pytest.approx(1.0, rel=1e-12)
    assert probability[1:].min() >= UNIFORM_SHARE / (T - 1)
    # √E[L_t²] ∝ t^−1.5 at the pilot's timesteps, rounded to half a power of two.
    without_floor = probability[[1, 2, 4, 10]] - UNIFORM_SHARE / (T - 1)
    np.testing.assert_allclose(without_floor / without_floor[0], [1, 2**-1.5, 2**-3, 10**-1.5], rtol=0.42)


def test_rounding_differences_between_engines_leave_the_plan_as_it_is():
    pilot = pilot_evaluations(10, T, 4000)
    rng = np.random.default_rng(0)
    nats = rng.exponential(size=len(pilot.timestep)) / pilot.timestep
    noisy = nats * (1 + 1e-6 * rng.standard_normal(len(nats)))
    np.testing.assert_array_equal(timestep_probability(pilot, nats, T), timestep_probability(pilot, noisy, T))


@pytest.mark.parametrize(("num_images", "budget"), [(1, 500), (3, 400), (100, 1000), (7, 3000)])
def test_no_draw_is_used_twice_and_the_pilots_are_others(num_images, budget):
    plan = make_plan(falling_probability(), num_images, budget, seed=1)
    pilot = pilot_evaluations(num_images, T, budget)
    draws = np.concatenate([np.stack(plan.evaluations, axis=1), np.stack(pilot, axis=1)])  # [M, 3]
    assert len(np.unique(draws, axis=0)) == len(draws)
    assert len(plan.weight) <= budget
    assert draws[:, 2].min() >= 0
    assert draws[:, 2].max() < 256


def test_every_replicate_has_timestep_0_once_and_estimates_every_other_without_bias():
    probability, num_images = falling_probability(), 400
    plan = make_plan(probability, num_images, 400 * 2 * 12, seed=0)
    image, timestep, _ = plan.evaluations
    cell = image * plan.num_replicates + plan.replicate
    np.testing.assert_array_equal(np.bincount(cell[timestep == 0]), np.ones(num_images * plan.num_replicates))
    assert np.all(plan.weight[timestep == 0] == 1.0)
    # The mean weight that falls on a timestep is 1: its term counts once, whatever its probability.
    weights = np.bincount(timestep, plan.weight, minlength=T) / (num_images * plan.num_replicates)
    expected_count = 11 * probability[1:]
    spread = np.sqrt(np.minimum(expected_count, 1.0) / (num_images * plan.num_replicates)) / expected_count
    assert np.all(np.abs(weights[1:] - 1.0) < 5 * spread)
    assert abs(weights[1:].mean() - 1.0) < 0.02


def test_systematic_points_spread_over_the_distribution():
    """Of m points, a timestep of probability p gets ⌊mp⌋ or ⌈mp⌉ in every replicate."""
    probability = falling_probability()
    plan = make_plan(probability, 40, 40 * 2 * 41, seed=4)
    image, timestep, _ = plan.evaluations
    assert plan.num_replicates == 2
    for t in (1, 2, 3):
        counts = np.bincount((image * 2 + plan.replicate)[timestep == t], minlength=80)
        assert set(counts) <= {int(np.floor(40 * probability[t])), int(np.ceil(40 * probability[t]))}


def test_few_images_get_more_replicates():
    assert make_plan(falling_probability(), 2, 600, seed=0).num_replicates == 32
    assert make_plan(falling_probability(), 300, 9600, seed=0).num_replicates == 2


def test_a_single_timestep_needs_no_distribution():
    pilot = pilot_evaluations(5, 1, 100)
    assert len(pilot.timestep) == 0
    plan = make_plan(timestep_probability(pilot, np.zeros(0), 1), 5, 100, seed=0)
    assert set(plan.evaluations.timestep) == {0}


@pytest.mark.parametrize("num_images", [1, 3, 50])
def test_the_most_that_a_budget_may_ask_for_has_draws_enough(num_images):
    probability = falling_probability()
    most = most_evaluations(probability, num_images)
    plan = make_plan(probability, num_images, most, seed=0)
    assert len(plan.weight) > 0.8 * most


def test_too_few_and_too_many_evaluations_are_refused():
    with pytest.raises(InputError, match="expected at least 40; raise --evaluations"):
        make_plan(falling_probability(), 10, 39, seed=0)
    with pytest.raises(InputError, match="expected at most 240; lower --evaluations"):
        make_plan(falling_probability(), 1, 50_000, seed=0)
