"""Numbers are taken by their value or refused, whatever type carries them."""

import json
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.number_checks import real_array, real_number, shown, whole_number, yes_or_no
from diffusion.process import Process, SampleShape
from diffusion.samplers import SAMPLERS, make_table
from diffusion.spacing import SPACINGS, check_timesteps
from diffusion.step_table import COLUMNS, StepTable

INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
FLOATS = [np.float16, np.float32, np.float64, np.longdouble]
NO_NUMBERS = [True, np.True_, "1", b"1", 1j, Fraction(1, 2), Decimal(1), None, [1], np.array(1), np.array([1]), {}]
PROCESS = Process(SampleShape(1, 2, 2), NoiseSchedule.make("linear", 100))


@given(st.sampled_from(INTEGERS), st.data())
def test_a_whole_number_of_any_width_is_pythons(kind, data):
    limits = np.iinfo(kind)
    value = data.draw(st.integers(int(limits.min), int(limits.max)))
    for found in (whole_number(kind(value), "n"), real_number(kind(value), "n")):
        assert found == (value if isinstance(found, int) else float(value))
    assert type(whole_number(kind(value), "n")) is int


@given(st.sampled_from(FLOATS), st.floats(width=16))
def test_a_float_of_any_width_is_pythons(kind, value):
    found = real_number(kind(value), "n")
    assert type(found) is float
    assert found == value or (math.isnan(found) and math.isnan(value))


@pytest.mark.parametrize("value", NO_NUMBERS, ids=shown)
def test_what_is_no_number_is_refused(value):
    for check in (whole_number, real_number):
        with pytest.raises(InputError, match="^n is .*, expected a "):
            check(value, "n")
    for array in ([value, 2.0], np.array([value, 2.0], dtype=object)):
        with pytest.raises(InputError, match="^n: an entry is|^n: found"):
            real_array(array, "n")


@pytest.mark.parametrize("value", [10**400, -(10**400), 10**5000, np.longdouble("1e4000")], ids=lambda value: "huge")
def test_a_number_too_large_is_refused_and_can_be_shown(value):
    with pytest.raises(InputError, match="too large for float64"):
        real_number(value, "n")
    with pytest.raises(InputError, match="n: (an entry is|holds numbers too large)"):
        real_array([value], "n")
    assert len(shown(value)) <= 60


def test_arrays_are_copied_by_value():
    given_array = np.array([1, 2, 3], dtype=">i2")
    found = real_array(given_array, "n")
    np.testing.assert_array_equal(found, [1.0, 2.0, 3.0])
    given_array[0] = 9
    assert found[0] == 1.0
    assert found.dtype == np.float64
    for array in (
        np.ma.array([1.0, 2.0], mask=[0, 1]),
        np.array(["1"]),
        np.array([True]),
        np.array([1j]),
        [[1], [1, 2]],
    ):
        with pytest.raises(InputError):
            real_array(array, "n")


@pytest.mark.parametrize("value", ["false", "no", 0, 1, None, np.array(True)])
def test_a_choice_is_true_or_false(value):
    with pytest.raises(InputError, match="expected True or False"):
        yes_or_no(value, "choice")
    assert yes_or_no(np.True_, "choice") is True


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_steps_of_any_width_choose_the_same_timesteps(kind, spacing):
    process = Process(SampleShape(1, 2, 2), NoiseSchedule.make("linear", 1000))
    expected = make_table(process, num_steps=100, spacing=spacing, from_timestep=120)
    found = make_table(process, num_steps=kind(100), spacing=spacing, from_timestep=kind(120))
    np.testing.assert_array_equal(found.timesteps, expected.timesteps)
    np.testing.assert_array_equal(found.coefficients, expected.coefficients)
    assert NoiseSchedule.make("squaredcos_cap_v2", kind(127)) == NoiseSchedule.make("squaredcos_cap_v2", 127)


@pytest.mark.parametrize("value", [each for each in NO_NUMBERS if each is not None], ids=shown)
@pytest.mark.parametrize("name", ["num_steps", "from_timestep", "lambda_min", "eta", "spacing", "invert"])
def test_arguments_of_a_table_are_taken_by_value_or_refused(name, value):
    if name == "invert" and isinstance(value, bool | np.bool_):
        return
    with pytest.raises(InputError):
        make_table(PROCESS, "ddim", **{name: value})
    if name in ("num_steps", "from_timestep"):
        for number in (2.5, math.nan, math.inf, 10**5000, -1):
            with pytest.raises(InputError):
                make_table(PROCESS, "ddim", **{name: number})


@pytest.mark.parametrize("value", [10**400, math.nan], ids=shown)
@pytest.mark.parametrize("name", ["lambda_min", "eta"])
def test_options_beyond_all_limits(name, value):
    with pytest.raises(InputError):
        make_table(PROCESS, "ddim", **{name: value})
    with pytest.raises(InputError):
        make_table(PROCESS, "ddim", invert=True, **{name: value})


@pytest.mark.parametrize(
    "timesteps",
    [
        np.ma.array([99, 50, 0], mask=[0, 1, 0]),
        [99.0, 0.0],
        [True, False],
        np.array([True, False]),
        "99,0",
        {99, 0},
        [[99, 0]],
        [10**5000],
        [99, [0]],
        None,
    ],
    ids=shown,
)
def test_timesteps_that_are_no_list_of_whole_numbers(timesteps):
    with pytest.raises(InputError, match="timesteps: found"):
        check_timesteps(timesteps, 100)


@pytest.mark.parametrize("kind", INTEGERS)
def test_timesteps_of_any_width(kind):
    np.testing.assert_array_equal(check_timesteps(np.array([99, 3, 0], kind), 100), [99, 3, 0])
    table = StepTable("mine", np.array([99, 3, 0], kind), np.zeros((3, len(COLUMNS)), np.float16))
    assert table.timesteps.dtype == np.int64
    np.testing.assert_array_equal(table.timesteps, [99, 3, 0])


@pytest.mark.parametrize(
    "change",
    [
        {"clip": True},
        {"clip": "1"},
        {"histories": True},
        {"histories": 1.0},
        {"learned": "false"},
        {"learned": 1},
        {"h2_is_x_start": 0},
        {"timesteps": np.ma.array([9, 0], mask=[1, 0])},
        {"timesteps": [True, False]},
        {"timesteps": np.array([2**63 + 9, 0], np.uint64)},
        {"coefficients": np.zeros((2, len(COLUMNS)), complex)},
        {"coefficients": np.zeros((2, len(COLUMNS)), bool)},
        {"coefficients": np.full((2, len(COLUMNS)), "0")},
        {"coefficients": np.ma.masked_array(np.zeros((2, len(COLUMNS))), mask=True)},
        {"coefficients": np.full((2, len(COLUMNS)), np.longdouble("1e4000"))},
    ],
)
def test_a_table_of_ones_own_is_taken_by_value_or_refused(change):
    good = {"sampler": "mine", "timesteps": [9, 0], "coefficients": np.zeros((2, len(COLUMNS)))}
    StepTable(**good)
    with pytest.raises(InputError):
        StepTable(**good | change)


def test_a_table_does_not_change_with_the_arrays_it_was_made_of():
    timesteps, coefficients = np.array([9, 0]), np.zeros((2, len(COLUMNS)))
    table = StepTable("mine", timesteps, coefficients)
    timesteps[0], coefficients[0, 0] = 5, 1.0
    assert table.timesteps[0] == 9
    assert not table.coefficients.any()
    with pytest.raises(ValueError, match="read-only"):
        table.coefficients[0, 0] = 1.0


@pytest.mark.parametrize("clip", [1, np.int64(1), np.float32(1.0), np.float16(1), 1.0])
def test_a_clip_of_any_type_is_that_clip(clip):
    process = Process(SampleShape(1, 2, 2), NoiseSchedule.make("linear", 10), clip_sample=clip)
    assert type(process.clip_sample) is float
    assert process == Process(SampleShape(1, 2, 2), NoiseSchedule.make("linear", 10), clip_sample=1.0)
    assert json.loads(json.dumps(process.to_json()))["clip_sample"] == 1.0
    for name in SAMPLERS:
        assert make_table(process, name).clip == 1.0 or SAMPLERS[name].histories == 0


def changed(**changes):
    """A process's JSON with other values, by dotted name."""
    fields = json.loads(json.dumps(PROCESS.to_json()))
    for name, value in changes.items():
        *path, last = name.split("__")
        place = fields
        for part in path:
            place = place[part]
        place[last] = value
    return fields


@given(
    st.sampled_from(
        [
            *("format", "clip_sample", "prediction_type", "variance_type", "checkpoint_sha256"),
            *("sample__channels", "sample__height", "sample__width", "sample__levels"),
            *("schedule__kind", "schedule__num_train_timesteps", "schedule__beta_start", "schedule__beta_end"),
        ]
    ),
    st.sampled_from(
        [True, False, "1", "0.5", "", [1], [], {}, {"a": 1}, -1, 0, 0.5, 10**400, math.nan, math.inf, None]
    ),
)
def test_a_field_of_another_type_is_refused_or_means_its_value(name, value):
    fields = changed(**{name: value})
    try:
        process = Process.from_json(fields)
    except InputError:
        return
    found = process.to_json()
    *path, last = name.split("__")
    for part in path:
        found = found[part]
    if value is None:
        assert found[last] in (None, 1e-4, 0.02)  # null, or diffusers' own default
    else:
        assert found[last] == value
        assert type(value) is type(found[last]) or not isinstance(value, bool | str)


def test_a_bound_that_is_missing_is_not_no_bound():
    fields = PROCESS.to_json()
    del fields["clip_sample"]
    with pytest.raises(InputError, match="the field 'clip_sample' is missing"):
        Process.from_json(fields)


@pytest.mark.parametrize(
    "betas",
    [["0.1", "0.2"], [True], [0.1, True], np.array([0.1j]), np.array(["0.1"]), "0.1", {"a": 1}, [[0.1], [0.2, 1]]],
)
def test_betas_that_are_no_numbers(betas):
    with pytest.raises(InputError, match="not a list of numbers"):
        NoiseSchedule.explicit(betas)


@pytest.mark.parametrize("value", ["0.0001", True, 1e-4j, [1e-4]])
@pytest.mark.parametrize("name", ["beta_start", "beta_end"])
def test_ends_that_are_no_numbers(name, value):
    with pytest.raises(InputError, match=f"{name} is"):
        NoiseSchedule.make("linear", 10, **{name: value})
