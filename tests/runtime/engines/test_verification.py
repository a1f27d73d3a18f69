"""The comparison that decides whether an engine is published: what it must let pass and what it must catch."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from export.trajectories import make_golden, rounded
from runtime.engines.golden import Golden
from runtime.engines.verification import TOLERANCES, EngineVerification, TimestepError, verify_engine
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
    return prediction + error * np.sqrt((prediction**2).mean()) * alternating(x)


def test_equal_networks_pass(golden, precision):
    result = verified(golden, precision, NETWORK)
    assert result.passed
    assert result.worst == 0
    assert result.chain_error < 1e-7  # x_0 is kept as float32
    assert [error.timestep for error in result.errors] == golden.timesteps.tolist()
    assert result.chain_steps == 20


def test_an_even_error_passes_up_to_the_tolerance(golden, precision):
    tolerance = TOLERANCES[precision]
    result = verified(golden, precision, lambda x, t: scaled(x, t, 0.3 * tolerance))
    assert result.passed, result.table()
    assert result.worst == pytest.approx(0.3 * tolerance, rel=1e-2)
    result = verified(golden, precision, lambda x, t: scaled(x, t, 1.1 * tolerance))
    assert not result.passed
    assert all(not error.passed for error in result.errors)


def test_an_error_that_stands_out_at_some_timestep_is_caught_within_the_tolerance(golden, precision):
    tolerance = TOLERANCES[precision]

    def uneven(factor):
        return verified(golden, precision, lambda x, t: scaled(x, t, tolerance * (factor if t[0] == 999 else 0.25)))

    assert uneven(0.45).passed
    result = uneven(0.55)
    assert not result.passed
    assert [error.timestep for error in result.errors if not error.passed] == [999]
    assert result.worst < tolerance
    assert "999" in next(line for line in result.table().splitlines() if "too large" in line)


def test_what_is_negligible_does_not_stand_out(golden, precision):
    tolerance = TOLERANCES[precision]
    result = verified(golden, precision, lambda x, t: scaled(x, t, tolerance * (0.15 if t[0] == 999 else 1e-4)))
    assert result.passed
    result = verified(golden, precision, lambda x, t: scaled(x, t, tolerance * (0.25 if t[0] == 999 else 1e-4)))
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
    assert result.errors[-1].allowed == pytest.approx(min(TOLERANCES["bf16"], 2 * low))
    assert result.errors[0].allowed < result.errors[-1].allowed


def test_an_error_that_only_a_chain_shows_is_caught(golden, precision):
    checked = set(golden.timesteps.tolist())
    visited = set(golden.chain_timesteps.tolist())
    assert visited - checked
    result = verified(
        golden,
        precision,
        lambda x, t: NETWORK(x, t) * (1.0 if int(t[0]) in checked else 1 + 30 * TOLERANCES[precision]),
    )
    assert all(error.passed for error in result.errors)
    assert not result.passed
    assert result.chain_error > TOLERANCES[precision]
    assert result.table().splitlines()[-1].endswith("too large")


def test_nan_never_passes(golden, precision):
    result = verified(golden, precision, lambda x, t: NETWORK(x, t) * (np.nan if t[0] == 0 else 1.0))
    assert not result.passed
    assert math.isnan(result.worst)
    fields = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert fields["passed"] is False
    assert fields["worst_relative_error"] is None
    assert fields["timesteps"][-1]["relative_error"] is None
    assert fields["chain"]["relative_error"] is None


def test_report():
    result = EngineVerification((TimestepError(9, 0.01, 0.02), TimestepError(0, 0.03, 0.02)), 0.1, 20, 0.03, "a", "b")
    assert not result.passed
    assert (result.worst, result.median) == (0.03, 0.02)
    fields = result.to_json()
    assert (fields["reference"], fields["ran_on"], fields["chain"]["steps"]) == ("a", "b", 20)


def test_reference_survives_its_file(golden):
    content = golden.to_bytes()
    again = Golden.from_bytes(content, Path("unet.xml.golden.npz"), "a command")
    for name, value in vars(golden).items():
        np.testing.assert_array_equal(getattr(again, name), value)
        assert type(getattr(again, name)) is type(value)
    with pytest.raises(InputError, match=r"golden\.npz: not the reference .*; make it again with `a command`"):
        Golden.from_bytes(content[:-100], Path("unet.xml.golden.npz"), "a command")
