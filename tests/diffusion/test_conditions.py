"""Conditions in the JSON of a process: written, read back, and refused where they make no sense."""

import json

import pytest

from diffusion.conditions import Condition
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape

LABEL = Condition("y", "int64", classes=10, null=10)
GUIDANCE = Condition("guidance", "float32", default=1.0)
LOW_RES = Condition("low_res", "float32", (3, 64, 64))


def a_process(*conditions: Condition) -> Process:
    return Process(SampleShape(3, 8, 8), NoiseSchedule.make("linear"), conditions=conditions)


def test_the_json_object_is_the_documented_one():
    described = a_process(LABEL, GUIDANCE, LOW_RES).to_json()
    assert described["format"] == 2
    assert described["conditions"] == [
        {"name": "y", "type": "int64", "shape": [], "classes": 10, "null": 10},
        {"name": "guidance", "type": "float32", "shape": [], "default": 1.0},
        {"name": "low_res", "type": "float32", "shape": [3, 64, 64]},
    ]


@pytest.mark.parametrize(
    "conditions",
    [(), (LABEL,), (Condition("y", "int64", classes=3),), (LABEL, GUIDANCE), (GUIDANCE, LABEL), (LOW_RES, LABEL)],
)
def test_json_round_trip(conditions):
    process = a_process(*conditions)
    text = json.dumps(process.to_json())
    assert Process.from_json_text(text) == process
    assert json.loads(text)["format"] == (2 if conditions else 1)


def test_an_unconditional_process_is_written_as_before():
    assert "conditions" not in a_process().to_json()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 1}, "process format is 1 and conditions are"),
        ({"conditions": []}, r"process format is 2 and conditions are \[\]"),
        ({"conditions": None}, "process format is 2 and conditions are None"),
        ({"conditions": {"y": 1}}, "expected a list of conditions"),
        ({"conditions": ["y"]}, "found 'y', expected a JSON object for each"),
        ({"conditions": [LABEL.to_json() | {"dropout": 0.1}]}, "'y': has a field 'dropout' that this version does not"),
        ({"conditions": [LABEL.to_json(), LABEL.to_json()]}, "conditions are y, y, expected names that differ"),
        ({"conditions": [GUIDANCE.to_json()]}, "guidance: expected one class label beside it, with a null class"),
        (
            {"conditions": [{"name": "y", "type": "int64", "shape": [], "classes": 3}, GUIDANCE.to_json()]},
            "guidance: expected one class label beside it, with a null class",
        ),
    ],
)
def test_impossible_conditions_are_refused(change, says):
    with pytest.raises(InputError, match=says) as caught:
        Process.from_json(a_process(LABEL).to_json() | change, "unet.onnx")
    assert str(caught.value).startswith("unet.onnx: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["name", "type", "shape"])
def test_a_field_that_is_lost_is_named(name):
    fields = LABEL.to_json()
    del fields[name]
    with pytest.raises(InputError, match=f"has no field '{name}'"):
        Condition.from_json(fields)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "t"}, "name is 't'"),
        ({"name": "a b"}, "name is 'a b'"),
        ({"name": 3}, "name is 3"),
        ({"type": "int32"}, "type is 'int32'"),
        ({"shape": "12"}, "shape is '12', expected a list"),
        ({"shape": [0]}, "a size of its shape is 0"),
        ({"shape": [2]}, r"shape is \[2\], expected \[\], one label"),
        ({"classes": 0}, "classes is 0"),
        ({"classes": True}, "classes is True"),
        ({"null": 11}, "null is 11, expected a whole number from 0 to 10"),
        ({"null": -1}, "null is -1"),
        ({"default": 1.0}, "default is 1.0, expected it of a float32 number alone"),
        ({"type": "float32"}, "is float32 and has classes or a null class"),
        ({"name": "guidance"}, r"guidance: is int64 \[\], expected a float32 number"),
    ],
)
def test_impossible_fields_are_refused(change, says):
    with pytest.raises(InputError, match=says):
        Condition.from_json(LABEL.to_json() | change)


def test_a_label_without_a_number_of_classes_and_a_default_that_is_no_number_are_refused():
    with pytest.raises(InputError, match="says no number of classes"):
        Condition("y", "int64")
    with pytest.raises(InputError, match="default is nan"):
        Condition("guidance", "float32", default=float("nan"))
    with pytest.raises(InputError, match=r"default is 1.0"):
        Condition("low_res", "float32", (3, 4, 4), default=1.0)


def test_labels_are_counted_with_the_null_class():
    assert LABEL.num_labels == 11
    assert Condition("y", "int64", classes=10).num_labels == 10
    assert Condition("y", "int64", classes=10, null=0).num_labels == 10
