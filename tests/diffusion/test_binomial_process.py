"""The description of a binomial process, and that it is never taken for a Gaussian one."""

import json

import numpy as np
import pytest

from diffusion.binomial import constant_erasure
from diffusion.binomial_process import BinomialProcess
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape

PROCESS = BinomialProcess(SampleShape(1, 1, 20, levels=2), constant_erasure(50), "abc")


def test_json_and_back():
    again = BinomialProcess.from_json_text(json.dumps(PROCESS.to_json()))
    assert again == PROCESS
    np.testing.assert_array_equal(again.schedule.betas, PROCESS.schedule.betas)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": None}, "file: describes no binomial process .kind is None.; sample from a Gaussian one"),
        ({"format": 2}, "file: process format is 2, this version reads 1"),
        ({"prediction_type": "epsilon"}, "file: prediction_type is 'epsilon', expected 'x_start_logit'"),
        ({"sample": 3}, "file: 'sample' and 'schedule' must be JSON objects"),
        ({"schedule": {"kind": "explicit", "betas": [2.0]}}, "file: noise schedule: beta.0. is"),
        ({"sample": {"channels": 1, "height": 1, "width": 20, "levels": 17}}, "file: binomial process: levels is 17"),
    ],
)
def test_what_cannot_be_read_is_named(change, message):
    with pytest.raises(InputError, match=message):
        BinomialProcess.from_json({**PROCESS.to_json(), **change}, "file")


def test_no_json_and_no_object():
    with pytest.raises(InputError, match="file: not JSON"):
        BinomialProcess.from_json_text("{", "file")
    with pytest.raises(InputError, match="found list"):
        BinomialProcess.from_json([], "file")


def test_gaussian_and_binomial_are_never_mistaken_for_each_other():
    gaussian = Process(SampleShape(1, 1, 20, levels=2), NoiseSchedule.make("linear"))
    with pytest.raises(InputError, match="describes no binomial process"):
        BinomialProcess.from_json(gaussian.to_json())
    with pytest.raises(InputError, match="describes a binomial process"):
        Process.from_json(PROCESS.to_json())
