"""What a table promises, and which chains `make_table` refuses or remarks on."""

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from diffusion.samplers import make_table
from diffusion.step_table import COLUMNS, StepTable

PROCESS = Process(SampleShape(3, 8, 8), NoiseSchedule.make("linear"), clip_sample=1.0)


def test_default_is_all_timesteps_with_the_clip_of_the_process():
    table = make_table(PROCESS)
    assert table.sampler == "ddpm"
    np.testing.assert_array_equal(table.timesteps, np.arange(1000)[::-1])
    assert table.clip == 1.0
    assert (table.histories, table.learned, table.notes) == (0, False, ())


def test_cast_rounds_once():
    table = make_table(PROCESS)
    assert table.cast().dtype == np.float32
    np.testing.assert_array_equal(table.cast(), np.float32(table.coefficients))


@pytest.mark.parametrize(
    ("kind", "num_steps", "expected"),
    [("linear", 50, 0.4), ("linear", 10, 2.2), ("squaredcos_cap_v2", 50, 630), ("squaredcos_cap_v2", 10, 3150)],
)
@pytest.mark.parametrize("clip_sample", [None, 1.0])
def test_conditioning_of_known_chains(kind, num_steps, expected, clip_sample):
    process = Process(SampleShape(3, 8, 8), NoiseSchedule.make(kind), clip_sample=clip_sample)
    table = make_table(process, num_steps=num_steps)
    assert table.conditioning == pytest.approx(expected, rel=0.05)
    assert table.absolute_tolerance() == pytest.approx(1e-5 + expected / 2**21, rel=0.05)


def test_from_timestep_spaces_the_steps_below_it():
    np.testing.assert_array_equal(make_table(PROCESS, num_steps=4, from_timestep=399).timesteps, [399, 299, 199, 99])
    np.testing.assert_array_equal(make_table(PROCESS, from_timestep=2).timesteps, [2, 1, 0])
    table = make_table(PROCESS, timesteps=[400, 20], from_timestep=400)
    np.testing.assert_array_equal(table.timesteps, [400, 20])
    assert table.notes == ()  # beginning in the middle is what was asked for


def test_remarks():
    (note,) = make_table(PROCESS, num_steps=7, spacing="leading").notes
    assert "begins at timestep 852, not at 999" in note
    (note,) = make_table(PROCESS, timesteps=[500, 0]).notes
    assert "alpha_bar 0.0" in note


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sampler": "euler"}, "sampler is 'euler', expected one of ddpm"),
        ({"num_steps": 0}, "steps is 0"),
        ({"num_steps": 2000}, "steps is 2000, expected a whole number from 1 to 1000"),
        ({"num_steps": 5, "timesteps": [3, 2]}, "both given"),
        ({"timesteps": [3, 3]}, "strictly descending"),
        ({"timesteps": [1, 3]}, "strictly descending"),
        ({"timesteps": [1000]}, "expected 0 to 999"),
        ({"timesteps": []}, "non-empty"),
        ({"from_timestep": 1000}, "expected 0 to 999"),
        ({"from_timestep": 300, "timesteps": [200, 0]}, "begin at 200, but from-timestep is 300"),
        ({"from_timestep": 300, "num_steps": 302}, "from 1 to 301"),
    ],
)
def test_impossible_chains(arguments, says):
    with pytest.raises(InputError, match=says):
        make_table(PROCESS, **arguments)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"coefficients": np.zeros((2, 12))}, "shape"),
        ({"coefficients": np.full((2, 13), np.nan)}, "coefficient u at timestep 9 is nan"),
        ({"histories": 3}, "histories is 3"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"clip": np.nan}, "clip is nan"),
    ],
)
def test_impossible_tables(changes, says):
    fields = {"sampler": "mine", "timesteps": np.array([9, 0]), "coefficients": np.zeros((2, len(COLUMNS)))}
    with pytest.raises(InputError, match=says):
        StepTable(**(fields | changes))


def test_noise_after_the_last_step_is_refused():
    with pytest.raises(InputError, match="last row adds noise"):
        StepTable.from_columns("mine", np.array([9, 0]), {"s": 0.1})


def test_a_coefficient_too_large_for_float32_is_refused_when_cast():
    table = StepTable.from_columns("mine", np.array([9, 0]), {"a": np.array([1e39, 1.0])})
    with pytest.raises(InputError, match=r"coefficient a at timestep 9 is 1e\+39"):
        table.cast()
