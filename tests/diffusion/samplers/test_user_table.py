"""A table of one's own: the JSON object, and what is checked before it runs."""

import json

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.samplers import SAMPLERS, make_table
from diffusion.samplers.ddim import ddim_inversion
from diffusion.samplers.user_table import table_from_json, table_to_json
from diffusion.step_table import StepTable
from tests.diffusion.samplers.networks import a_process

ROW = {"t": 9, "u": 1.0, "v": -0.5, "a": 0.5, "b": 0.5}
MINE = {"format": 1, "sampler": "mine", "clip": None, "histories": 0, "rows": [ROW, ROW | {"t": 0}]}


def same(one: StepTable, other: StepTable) -> bool:
    fields = ("sampler", "clip", "histories", "learned", "h2_is_x_start", "notes", "checkpoint_sha256")
    return (
        all(getattr(one, name) == getattr(other, name) for name in fields)
        and np.array_equal(one.timesteps, other.timesteps)
        and one.coefficients.tobytes() == other.coefficients.tobytes()
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("clip_sample", [None, 0.9])
def test_every_table_comes_back_bit_for_bit(sampler, clip_sample):
    process = a_process(clip_sample=clip_sample, variance_type="learned_range")
    table = make_table(process, sampler, 7, "leading")
    assert table.notes
    assert same(table_from_json(json.loads(json.dumps(table_to_json(table)))), table)
    assert same(make_table(process, table), table)


def test_inversion_comes_back(tmp_path):
    table = ddim_inversion(a_process(), np.array([999, 500, 0]))
    assert same(table_from_json(table_to_json(table)), table)


def test_what_is_not_said_is_0():
    table = table_from_json({**MINE, "rows": [{"t": 3}]})
    assert not table.coefficients.any()
    assert (table.clip, table.learned, table.h2_is_x_start) == (np.inf, False, False)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ([], "found list, expected the JSON object of a table"),
        ({**MINE, "format": 2}, "table format is 2, this version reads 1"),
        ({**MINE, "format": True}, "table format is True"),
        ({"format": 1}, "the table has no 'sampler'"),
        ({**MINE, "step": 3}, "the table has a field 'step', expected format, sampler"),
        ({**MINE, "sampler": 3}, "sampler is 3, expected a name"),
        ({**MINE, "sampler": "a\x1b[31m"}, "expected a name in printable characters"),
        ({**MINE, "notes": ["two\nlines"]}, "expected a list of strings, one line each"),
        ({**MINE, "h2": "x_start"}, "h2 is x_start, but with histories 0 there is no h2"),
        ({**MINE, "clip": "1"}, "clip is '1', expected a positive number or null"),
        ({**MINE, "clip": -1}, "clip is -1.0, expected a positive"),
        ({**MINE, "histories": 1.0}, "histories is 1.0, expected 0, 1 or 2"),
        ({**MINE, "histories": 3}, "histories is 3"),
        ({**MINE, "learned": 1}, "learned is 1, expected true or false"),
        ({**MINE, "h2": "x"}, "h2 is 'x', expected one of h1, x_start"),
        ({**MINE, "notes": "none"}, "notes is 'none', expected a list of strings"),
        ({**MINE, "checkpoint_sha256": None}, "checkpoint_sha256 is None, expected a text"),
        ({**MINE, "rows": []}, "rows is not a non-empty list"),
        ({**MINE, "rows": [3]}, "row 0 is 3, expected a JSON object"),
        ({**MINE, "rows": [{"u": 1.0}]}, "row 0 has no 't'"),
        ({**MINE, "rows": [ROW, {"t": 0, "z": 1.0}]}, "row 1 has a field 'z', expected t, u, v"),
        ({**MINE, "rows": [{"t": 1.5}]}, "row 0: t is 1.5, expected a whole number"),
        ({**MINE, "rows": [{"t": 10**30}]}, "row 0: t is 1000"),
        ({**MINE, "rows": [{"t": 1, "a": "1"}]}, "row 0: a is '1', expected a finite number"),
        ({**MINE, "rows": [{"t": 1, "a": float("nan")}]}, "row 0: a is nan"),
        ({**MINE, "rows": [{"t": 1, "a": True}]}, "row 0: a is True"),
        ({**MINE, "rows": [{"t": 1, "a": 10**400}]}, "row 0: a is 1000"),
        ({**MINE, "rows": [ROW, ROW]}, "timesteps are 9, 9, expected"),
        ({**MINE, "rows": [ROW | {"s": 0.1}]}, "the last row adds noise"),
        ({**MINE, "rows": [ROW | {"c1": 0.1}]}, "c1 is not 0, but with histories 0"),
    ],
)
def test_impossible_files(fields, says):
    with pytest.raises(InputError, match=says) as refused:
        table_from_json(fields, "mine.json")
    assert str(refused.value).startswith("mine.json: ")
    assert "\n" not in str(refused.value)


def test_a_table_has_its_rows_already():
    table = table_from_json(MINE)
    for extra in (
        {"num_steps": 3},
        {"timesteps": [1]},
        {"lambda_min": -5.0},
        {"eta": 0.5},
        {"spacing": "leading"},
        {"invert": True},
    ):
        (name,) = extra
        said = {"num_steps": "steps", "lambda_min": "lambda-min"}.get(name, name)
        with pytest.raises(InputError, match=f"{said} was given with a table of one's own"):
            make_table(a_process(), table, **extra)


def test_the_process_must_be_able_to_run_it():
    with pytest.raises(InputError, match="timestep 1000 is outside the network's 0 to 999"):
        make_table(a_process(), table_from_json({**MINE, "rows": [ROW | {"t": 1000}]}))
    learned = table_from_json({**MINE, "learned": True})
    with pytest.raises(InputError, match="learned is true, but variance_type of the process is fixed_small"):
        make_table(a_process(), learned)
    assert make_table(a_process(variance_type="learned_range"), learned).learned


def test_what_a_process_would_do_otherwise_is_remarked_on():
    clipped, unclipped = a_process(clip_sample=1.0), a_process(clip_sample=None)
    table = make_table(clipped, "ddim", 5)
    assert make_table(clipped, table).notes == ()
    assert make_table(unclipped, table).notes == ("the clip of x_start is the table's, 1, where the process has none",)
    (note,) = make_table(clipped, make_table(unclipped, "ddim", 5)).notes
    assert "the table's, none, where the process has 1" in note
    (note,) = make_table(clipped, make_table(clipped, num_steps=5, invert=True)).notes
    assert note == "the timesteps ascend: the chain runs from data to noise"
    fields = table_to_json(make_table(clipped, "ddim", timesteps=[500, 0])) | {"notes": []}
    (note,) = make_table(clipped, table_from_json(fields)).notes
    assert "begins at timestep 500 with alpha_bar" in note


def test_an_x_start_that_is_not_the_process_s_is_remarked_on():
    epsilon, v_prediction = a_process(), a_process(prediction_type="v_prediction")
    table = make_table(epsilon, "ddim", 5)
    assert make_table(epsilon, table).notes == ()
    (note,) = make_table(v_prediction, table).notes
    assert "u at timestep 999" in note
    assert "v_prediction" in note


def test_a_fitted_table_is_of_one_checkpoint():
    fitted = table_from_json({**MINE, "checkpoint_sha256": "ab12"})
    assert same(table_from_json(table_to_json(fitted)), fitted)
    own = make_table(a_process(checkpoint_sha256="ab12"), fitted)
    assert not any("u at timestep" in note for note in own.notes)  # its numbers are none of the schedule's
    for other, says in (("cd34", "this network is of cd34"), (None, "that of this network is not known")):
        process = a_process(checkpoint_sha256=other)
        with pytest.raises(InputError, match=f"was fitted to checkpoint ab12, {says}; fit a table"):
            make_table(process, fitted)
        assert says in " ".join(make_table(process, fitted, force=True).notes)
    assert make_table(a_process(checkpoint_sha256="cd34"), table_from_json(MINE))
