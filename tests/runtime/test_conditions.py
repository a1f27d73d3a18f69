"""What a user asks of a conditional network, and what is refused."""

import numpy as np
import pytest

from diffusion.conditions import Condition
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.conditions import given_conditions, neutral_conditions
from runtime.sampler import Sampler
from tests.runtime.device.host_network import HostNetwork

LABEL, SCALE = Condition("y", "int64", classes=4, null=4), Condition("guidance", "float32", default=1.0)
LOW_RES, NOISE = Condition("low_res", "float32", (1, 2, 2)), Condition("level", "float32")


def a_process(*conditions: Condition) -> Process:
    return Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", 20), conditions=conditions)


GUIDED = a_process(LABEL, SCALE)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([2, 0, 4], [2, 0, 4]),
        ([None, 1], [4, 1]),
        ("all", [0, 1, 2, 3]),
        (np.array([3, 1], np.uint8), [3, 1]),
        (range(2), [0, 1]),
        (3, [3]),
    ],
)
def test_classes_are_taken_by_their_value(classes, expected):
    given = given_conditions(GUIDED, classes)
    assert given.classes.tolist() == expected
    assert given.lists[1].tolist() == [1.0]  # the default
    assert [each.dtype for each in given.lists] == [np.int64, np.float32]


def test_the_sample_with_index_i_takes_entry_i_mod_n():
    given = given_conditions(GUIDED, [3, 1, 2], [1.0, 2.0])
    labels, scales = given.of([0, 1, 2, 3, 2**64 - 1, 7])
    assert labels.tolist() == [3, 1, 2, 3, 3, 1]  # 2⁶⁴ − 1 is a multiple of 3
    assert scales.tolist() == [1.0, 2.0, 1.0, 2.0, 2.0, 2.0]
    for of, neutral in zip(GUIDED.conditions, neutral_conditions(GUIDED.conditions, 2), strict=True):
        assert (neutral.dtype, neutral.shape) == (of.type, (2,))


def test_a_sample_is_the_same_in_any_batch_and_any_part_of_a_run():
    sampler, single = (Sampler(HostNetwork(GUIDED), batch_size=size) for size in (4, 1))
    whole = sampler.sample_float32(10, seed=3, classes=[0, 3, 4], guidance=2.0)
    np.testing.assert_array_equal(single.sample_float32(10, seed=3, classes=[0, 3, 4], guidance=2.0), whole)
    part = sampler.sample_float32(5, seed=3, start=4, classes=[0, 3, 4], guidance=2.0)
    np.testing.assert_array_equal(part, whole[4:9])
    assert not np.array_equal(sampler.sample_float32(10, seed=3, classes=[0, 3, 4]), whole)


def test_other_conditions_come_by_name_one_or_several():
    process = a_process(LOW_RES, NOISE)
    images = np.arange(12, dtype=np.float64).reshape(3, 1, 2, 2)
    given = given_conditions(process, conditions={"low_res": images, "level": 0.5})
    assert given.of([4])[0].tolist() == images[1:2].tolist()
    one = given_conditions(process, conditions={"low_res": images[0], "level": [0.5, 1]})
    assert [len(each) for each in one.lists] == [1, 2]
    assert one.identity()["level"] == [0.5, 1.0]
    assert one.identity()["low_res"] != given.identity()["low_res"]


@pytest.mark.parametrize(
    ("process", "fields", "says"),
    [
        (GUIDED, {}, r"draws by class and was given none; give --class with classes 0 to 3, null for no class, or all"),
        (a_process(Condition("y", "int64", classes=4)), {}, "classes 0 to 3 or all"),
        (GUIDED, {"classes": [5]}, "class is 5, expected a whole number from 0 to 3, or null"),
        (GUIDED, {"classes": [-1]}, "class is -1"),
        (GUIDED, {"classes": [True]}, "class is True"),
        (GUIDED, {"classes": [1.0]}, r"class is 1\.0"),
        (GUIDED, {"classes": []}, "classes are an empty list"),
        (GUIDED, {"classes": "some"}, "classes are 'some'"),
        (a_process(Condition("y", "int64", classes=4)), {"classes": [None]}, "has no null class; give 0 to 3"),
        (a_process(Condition("y", "int64", classes=4)), {"classes": [1], "guidance": 2}, "no null class to be guided"),
        (a_process(LABEL), {"classes": [1], "guidance": 2}, "exported without; export it again without --no-guidance"),
        (a_process(), {"classes": [1]}, r"the network is unconditional; leave --class \(classes=\) out"),
        (a_process(), {"guidance": 2.0}, r"the network is unconditional; leave --guidance"),
        (GUIDED, {"classes": [1], "guidance": float("nan")}, "guidance is nan, expected a finite number"),
        (GUIDED, {"classes": [1], "guidance": 1e39}, "guidance is 1e\\+39, expected a finite number"),
        (GUIDED, {"classes": [1], "guidance": "2"}, "guidance is '2'"),
        (GUIDED, {"classes": [1], "guidance": []}, "guidance is an empty list"),
        (GUIDED, {"classes": [1], "conditions": {"y": [1]}}, "y was given twice"),
        (GUIDED, {"classes": [1], "conditions": {"z": 1}}, "condition z was given, and the network's are: y, guidance"),
        (a_process(LOW_RES), {}, r"conditioned on low_res \(float32 \[1, 2, 2\]\) .* --condition low_res=FILE.npy"),
        (a_process(NOISE), {}, "--condition level=NUMBER"),
        (a_process(LOW_RES), {"conditions": {"low_res": np.zeros((3, 1, 2, 3))}}, "expected \\(3, 1, 2, 2\\)"),
        (
            a_process(LOW_RES),
            {"conditions": {"low_res": np.zeros((2, 2))}},
            r"has shape \[2, 2\], expected \[1, 2, 2\]",
        ),
        (a_process(LOW_RES), {"conditions": {"low_res": np.zeros((0, 1, 2, 2))}}, r"has shape \[0, 1, 2, 2\]"),
        (a_process(LOW_RES), {"conditions": {"low_res": np.full((1, 1, 2, 2), np.nan)}}, "expected finite numbers"),
        (a_process(LOW_RES), {"conditions": {"low_res": np.zeros((1, 1, 2, 2), np.uint8)}}, "found uint8"),
    ],
)
def test_what_cannot_be_drawn_is_one_line_with_the_way_out(process, fields, says):
    with pytest.raises(InputError, match=says) as caught:
        given_conditions(process, **fields)
    assert "\n" not in str(caught.value)


def test_a_sampler_of_a_conditional_network_asks_for_its_conditions():
    with pytest.raises(InputError, match="draws by class and was given none"):
        Sampler(HostNetwork(GUIDED)).sample(2)


def test_lists_that_are_no_array():
    with pytest.raises(InputError, match="condition low_res is no array of numbers"):
        given_conditions(a_process(LOW_RES), conditions={"low_res": [[[1.0, 2.0], [3.0]]]})
