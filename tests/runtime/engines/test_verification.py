"""The comparison that decides whether an engine is published: what it must let pass and what it must catch."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.engines.interface import Engine
from runtime.engines.trajectories import make_golden
from runtime.engines.verification import EngineVerification, TimestepError, predict_with, verify_engine
from runtime.formats.golden import Golden
from runtime.formats.precision import PRECISIONS, rounded
from tests.gaussian import GaussianNetwork

PROCESS = Process(SampleShape(1, 8, 8), NoiseSchedule.make("linear"), variance_type="fixed_large")
NETWORK = GaussianNetwork(PROCESS, 0.2, 0.5)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def golden(precision):
    return make_golden(PROCESS, NETWORK, precision)


def verified(golden, precision, wrong) -> EngineVerification:
    def predict(x, t):
        return np.asarray(wrong(x, t), dtype=np.float32)

    return verify_engine(golden, PROCESS, predict, precision, "a reference", "a machine")


def alternating(x):
    """±1 in a pattern that no row of a chain has: an error of a known size that is not a multiple of x."""
    return np.where(np.indices(x.shape).sum(axis=0) % 2, 1.0, -1.0)


def scaled(x, t, error):
    """The network with a relative error of this size at every timestep."""
    prediction = NETWORK(x, t)
    size = np.sqrt((prediction**2).mean(axis=(1, 2, 3)))
    return prediction + (error * size)[:, None, None, None] * alternating(x)


def test_equal_networks_pass(golden, precision):
    result = verified(golden, precision, NETWORK)
    assert result.passed
    assert result.worst == 0
    assert result.chain_error < 1e-7  # x_0 is kept as float32
    assert [error.timestep for error in result.errors] == golden.timesteps.tolist()
    assert result.chain_steps == 20


def test_an_even_error_passes_up_to_the_tolerance(golden, precision):
    tolerance = PRECISIONS[precision].tolerance
    result = verified(golden, precision, lambda x, t: scaled(x, t, 0.3 * tolerance))
    assert result.passed, result.table()
    assert result.worst == pytest.approx(0.3 * tolerance, rel=1e-2)
    result = verified(golden, precision, lambda x, t: scaled(x, t, 1.1 * tolerance))
    assert not result.passed
    assert all(not error.passed for error in result.errors)


def test_an_error_that_stands_out_at_some_timestep_is_caught_within_the_tolerance(golden, precision):
    tolerance = PRECISIONS[precision].tolerance

    def uneven(factor):
        return verified(golden, precision, lambda x, t: scaled(x, t, tolerance * np.where(t == 999, factor, 0.25)))

    assert uneven(0.45).passed
    result = uneven(0.55)
    assert not result.passed
    assert [error.timestep for error in result.errors if not error.passed] == [999]
    assert result.worst < tolerance
    assert "999" in next(line for line in result.table().splitlines() if "too large" in line)


def test_what_is_negligible_does_not_stand_out(golden, precision):
    tolerance = PRECISIONS[precision].tolerance
    result = verified(golden, precision, lambda x, t: scaled(x, t, tolerance * np.where(t == 999, 0.15, 1e-4)))
    assert result.passed
    result = verified(golden, precision, lambda x, t: scaled(x, t, tolerance * np.where(t == 999, 0.25, 1e-4)))
    assert not result.passed


@pytest.mark.parametrize("precision_of_x", ["bf16"])
def test_where_rounding_x_alone_is_worse_more_is_allowed(precision_of_x):
    # The prediction is 30·x − 29·x_t's own mean direction: a network that cancels amplifies what x loses.
    def cancelling(x, t):
        strength = np.where(t < 50, 30.0, 0.0)[:, None, None, None]
        base = np.round(x * 8) / 8
        return (NETWORK(x, t) + strength * (x - base)).astype(np.float32)

    golden = make_golden(PROCESS, cancelling, precision_of_x)
    usual, low = golden.input_rounding[0], golden.input_rounding[-1]
    assert usual < 0.003
    assert low > 3 * usual

    def in_bf16(x, t):
        return cancelling(rounded(x, "bf16"), t)

    result = verify_engine(golden, PROCESS, in_bf16, "bf16", "", "")
    assert result.errors[-1].relative == pytest.approx(low)
    assert result.errors[-1].allowed == pytest.approx(min(PRECISIONS["bf16"].tolerance, 2 * low))
    assert result.errors[0].allowed < result.errors[-1].allowed


def first_of_the_batch(x, t):
    return NETWORK(x, t) + 0.1 * (x[:1] - x)


def mean_of_the_batch(x, t):
    return NETWORK(x, t) + 0.1 * (x.mean(axis=0) - x) * (len(x) > 1)


def timestep_of_the_first(x, t):
    return NETWORK(x, np.full_like(t, t[0]))


def two_in_the_wrong_order(x, t):
    return NETWORK(x, t)[:: -1 if len(x) == 2 else 1]


def the_last_of_five_is_not_written(x, t):
    prediction = NETWORK(x, t)
    prediction[4:5] = 0
    return prediction


def wrong_where_it_is_alone(x, t):
    return NETWORK(x, t) * (0.9 if len(x) == 1 else 1)


@pytest.mark.parametrize("chw", [(1, 8, 8), (3, 64, 64)])
@pytest.mark.parametrize(
    "wrong",
    [
        first_of_the_batch,
        mean_of_the_batch,
        timestep_of_the_first,
        two_in_the_wrong_order,
        the_last_of_five_is_not_written,
        wrong_where_it_is_alone,
    ],
    ids=lambda wrong: wrong.__name__,
)
def test_an_engine_that_is_wrong_for_some_samples_of_a_batch_is_caught(chw, wrong, monkeypatch):
    """By the predictions alone, whatever the size of a sample: a chain's batch has one timestep."""
    process = Process(SampleShape(*chw), NoiseSchedule.make("linear", 100), variance_type="fixed_large")
    network = GaussianNetwork(process, 0.2, 0.5)
    monkeypatch.setitem(globals(), "NETWORK", network)
    reference = make_golden(process, network, "bf16")
    assert verify_engine(reference, process, lambda x, t: network(x, t), "bf16", "", "").passed
    result = verify_engine(reference, process, wrong, "bf16", "", "")
    assert result.worst > result.tolerance


class StaticEngine(Engine):
    """Takes a range of batches alone; a sample sees the mean of its batch, as some exported graphs have it."""

    name, sha256, precision, process = "static", "0" * 64, "fp32", PROCESS

    def __init__(self, smallest, largest):
        self._range, self.batches = (smallest, largest), []

    def batch_range(self):
        return self._range

    def _bind(self, x, t, prediction):
        def call():
            smallest, largest = self._range
            assert smallest <= len(x) <= (largest or len(x))
            self.batches.append(len(x))
            prediction[:] = NETWORK(x, t) + (x - x.mean(axis=0))

        return call


@pytest.mark.parametrize(("batch_range", "given"), [((4, 4), [4]), ((1, 3), [1, 2, 3]), ((2, None), [2, 5, 8])])
def test_an_engine_that_does_not_take_a_batch_is_given_another(batch_range, given):
    engine = StaticEngine(*batch_range)
    predict = predict_with(engine)
    x = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)
    t = np.array([999, 500, 3, 4, 0], dtype=np.float32)
    # Alone, a sample is mixed with copies of itself.
    np.testing.assert_allclose(predict(x[:1], t[:1]), NETWORK(x[:1], t[:1]), rtol=0, atol=1e-6)
    assert predict(x, t).shape == (5, 1, 8, 8)
    golden = make_golden(PROCESS, predict, "fp32")
    assert verify_engine(golden, PROCESS, NETWORK, "fp32", "", "").passed
    assert not verify_engine(golden, PROCESS, predict, "fp32", "", "").passed
    assert sorted(set(engine.batches)) == given


def test_an_error_that_only_a_chain_shows_is_caught(golden, precision):
    checked = set(golden.timesteps.tolist())
    visited = set(golden.chain_timesteps.tolist())
    assert visited - checked
    result = verified(
        golden,
        precision,
        lambda x, t: (
            NETWORK(x, t)
            * np.where(np.isin(t, list(checked)), 1, 1 + 30 * PRECISIONS[precision].tolerance)[:, None, None, None]
        ),
    )
    assert all(error.passed for error in result.errors)
    assert not result.passed
    assert result.chain_error > PRECISIONS[precision].tolerance
    assert result.table().splitlines()[-1].endswith("too large")


def test_nan_never_passes(golden, precision):
    result = verified(
        golden, precision, lambda x, t: NETWORK(x, t) * np.where(t == 0, np.nan, 1.0)[:, None, None, None]
    )
    assert not result.passed
    assert math.isnan(result.worst)
    fields = json.loads(json.dumps(result.record().to_json(), allow_nan=False))
    assert fields["passed"] is False
    assert fields["worst_relative_error"] is None
    assert fields["timesteps"][-1]["relative_error"] is None
    assert fields["chain"]["relative_error"] is None


def test_report():
    result = EngineVerification((TimestepError(9, 0.01, 0.02), TimestepError(0, 0.03, 0.02)), 0.1, 20, 0.03, "a", "b")
    assert not result.passed
    assert (result.worst, result.median) == (0.03, 0.02)
    fields = result.record().to_json()
    assert (fields["reference"], fields["ran_on"], fields["chain"]["steps"]) == ("a", "b", 20)


def test_reference_survives_its_file(golden):
    content = golden.to_bytes()
    again = Golden.from_bytes(content, Path("unet.xml.golden.npz"), "a command")
    for name, value in vars(golden).items():
        np.testing.assert_array_equal(getattr(again, name), value)
        assert type(getattr(again, name)) is type(value)
    with pytest.raises(InputError, match=r"golden\.npz: cannot be read .*; make it again with `a command`"):
        Golden.from_bytes(content[:-100], Path("unet.xml.golden.npz"), "a command")
