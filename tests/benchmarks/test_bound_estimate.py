"""The estimate against a bound that is known exactly, and its standard errors against what seeds really scatter."""

import math

import numpy as np
import pytest

from benchmarks.likelihood.bound_estimate import BoundEstimate, block_edges, estimate
from benchmarks.likelihood.bound_evaluation import BoundEvaluator
from benchmarks.likelihood.timestep_plan import make_plan, pilot_evaluations, timestep_probability
from commands.errors import VerificationError
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process
from tests.benchmarks.closed_form_engine import (
    NETWORK,
    SCHEDULE,
    SHAPE,
    ClosedFormEngine,
    as_x_start,
    exact_bits_per_dim,
    level_pixels,
)
from tests.gaussian import GaussianNetwork

T = SCHEDULE.num_train_timesteps
X_START = as_x_start(level_pixels(12))


def bounds_of(engines, x_start=X_START, num_evaluations=600, seed=0, batch_size=64):
    evaluator = BoundEvaluator(engines, x_start, batch_size, seed)
    pilot = pilot_evaluations(len(x_start), T, num_evaluations)
    probability = timestep_probability(pilot, evaluator.nats(pilot)[0], T)
    plan = make_plan(probability, len(x_start), num_evaluations, seed)
    nats = evaluator.nats(plan.evaluations)
    return [
        BoundEstimate.from_terms(engine.process, x_start, plan, row) for engine, row in zip(engines, nats, strict=True)
    ]


def test_the_estimate_is_right_and_its_error_is_what_seeds_scatter():
    exact = exact_bits_per_dim(X_START)
    totals = [bounds_of([ClosedFormEngine()], seed=seed)[0].total for seed in range(40)]
    z = np.array([(total.mean - exact) / total.monte_carlo_error for total in totals])
    assert abs(z.mean()) < 4 / math.sqrt(len(z))  # no bias
    # Two tails of χ² with 40 degrees of freedom, each 1e-4, and a little more for the errors' own scatter.
    assert 0.35 < (z**2).mean() < 2.2
    assert np.mean([total.monte_carlo_error for total in totals]) < 0.05 * exact
    squares = np.mean([(total.population_error**2, total.monte_carlo_error**2) for total in totals], axis=0)
    assert squares[0] > squares[1]


def test_more_evaluations_lower_the_monte_carlo_error_and_not_the_populations():
    few, many = (bounds_of([ClosedFormEngine()], num_evaluations=m)[0].total for m in (480, 16 * 480))
    assert many.monte_carlo_error < few.monte_carlo_error / 3
    assert many.population_error > few.population_error / 2


def test_the_difference_of_two_engines_is_paired():
    other = GaussianNetwork(NETWORK.process, 0.1001, 0.5)
    first, second = bounds_of([ClosedFormEngine(), ClosedFormEngine(other)])
    difference = first.minus(second)
    exact = exact_bits_per_dim(X_START) - exact_bits_per_dim(X_START, other)
    assert abs(difference.mean - exact) < 4 * difference.monte_carlo_error
    assert difference.monte_carlo_error < first.total.monte_carlo_error / 100
    assert difference.mean == pytest.approx(first.total.mean - second.total.mean, abs=1e-12)


def test_neither_the_batch_nor_its_filling_matters():
    small, large = (bounds_of([ClosedFormEngine()], batch_size=size)[0] for size in (7, 100))
    assert small.total.mean == pytest.approx(large.total.mean, rel=1e-12)


def test_blocks_add_up_to_the_total_and_cover_every_timestep():
    (bound,) = bounds_of([ClosedFormEngine()])
    assert bound.edges[0] == 0
    assert bound.edges[-1] == T
    assert np.all(np.diff(bound.edges) > 0)
    assert block_edges(1).tolist() == [0, 1]
    report = bound.report()
    entries = report["timesteps"]
    assert [e["first"] for e in entries[1:]] == [e["last"] + 1 for e in entries[:-1]]
    total = sum(e["bits_per_dim_each"] * (e["last"] - e["first"] + 1) for e in entries) + bound.prior.mean()
    assert total == pytest.approx(report["bits_per_dim"], rel=1e-12)
    assert sum(term["bits_per_dim"] for term in report["terms"].values()) == pytest.approx(total, rel=1e-12)
    assert bound.cumulative()[-1] == pytest.approx(1.0)
    assert 0 < bound.half_below() < T


def test_errors_of_known_replicates():
    # Two images, two replicates: variances ½·(0.2)² and ½·(0.6)² within, means 1.1 and 2.3.
    found = estimate(np.array([[1.0, 1.2], [2.0, 2.6]]), exact=0.5)
    assert found.mean == pytest.approx(2.2)
    assert found.monte_carlo_error == pytest.approx(math.sqrt((0.02 + 0.18) / 2) / 2)
    assert found.population_error == pytest.approx(1.2 / 2)
    assert estimate(np.array([[1.0, 2.0]])).population_error is None


def test_a_prediction_that_is_not_finite_is_named():
    class Broken(ClosedFormEngine):
        def _bind(self, x, t, prediction):
            call = super()._bind(x, t, prediction)

            def broken():
                call()
                prediction[t == 3, 0, 1, 2] = np.inf

            return broken

    evaluator = BoundEvaluator([Broken()], X_START, 16, 0)
    pilot = pilot_evaluations(12, T, 600)
    with pytest.raises(VerificationError, match=r"the prediction for image \d+ at timestep 3 is not finite"):
        evaluator.nats(pilot)


def test_engines_of_another_schedule_cannot_be_compared():
    other = NoiseSchedule.make("linear", 60, 1e-3, 0.21)
    stranger = ClosedFormEngine(GaussianNetwork(Process(SHAPE, other), 0.1, 0.5))
    with pytest.raises(InputError, match="another noise schedule"):
        BoundEvaluator([ClosedFormEngine(), stranger], X_START, 16, 0)
