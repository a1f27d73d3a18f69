"""Sidecars that earlier versions wrote are read, and written again without a loss."""

import json
from pathlib import Path

import pytest

from diffusion.errors import InputError
from runtime.formats.openvino_description import OpenVinoDescription
from runtime.formats.plan_description import PlanDescription
from runtime.formats.sidecar import read_sidecar, sidecar_path

RECORDED = Path(__file__).with_name("recorded")
KINDS = {"unet.xml": OpenVinoDescription, "unet.plan": PlanDescription}


@pytest.mark.parametrize("name", KINDS)
def test_a_recorded_sidecar_is_read_and_written_as_it_was(tmp_path, name):
    sidecar = read_sidecar(RECORDED / name, KINDS[name])
    sidecar.write(tmp_path / name)
    assert sidecar_path(tmp_path / name).read_text() == sidecar_path(RECORDED / name).read_text()


def test_what_a_recorded_plan_says():
    plan = read_sidecar(RECORDED / "unet.plan", PlanDescription).engine
    assert (plan.flavor.title, plan.precision, plan.tensors.x.element_type) == ("TensorRT-RTX", "fp16", "float16")
    assert (plan.tensors.t.element_type, plan.tensors.prediction.shape) == ("int64", ("N", 2, 4, 6))
    assert [str(profile) for profile in plan.profiles] == ["1 to 64"]
    assert plan.built_on_gpu is None
    assert "REQUIRE_USER_ALLOCATION" in plan.builder_flags


def test_what_a_recorded_openvino_engine_says():
    engine = read_sidecar(RECORDED / "unet.xml", OpenVinoDescription).engine
    assert engine.builder.startswith("OpenVINO ")
    assert engine.verified_on is not None
    assert engine.verified_on.runtime.startswith("OpenVINO ")
    assert engine.tensors is not None
    assert engine.tensors.t.element_type == "int64"


@pytest.mark.parametrize("name", KINDS)
def test_an_engine_of_another_kind(tmp_path, name):
    other = next(kind for kind in KINDS.values() if kind is not KINDS[name])
    with pytest.raises(InputError, match=f"{name}.json: engine: flavor is .*, expected .*; make it again with `python"):
        read_sidecar(RECORDED / name, other)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": True}, "format is True, this version reads 1; install the version that wrote it"),
        ({"sha256": 5}, "sha256 is 5, expected a hash"),
        ({"process": []}, r"process is \[\], expected an object"),
        ({"engine": None}, "engine is None, expected an object"),
        ({"golden_sha256": ""}, "golden_sha256 is '', expected a hash"),
        ({"verification": {"passed": 1}}, "verification.passed is 1, expected true"),
        ({"verification": {"passed": True, "timesteps": 3}}, "verification: timesteps is 3, expected a list"),
        ({"builder": None, "builder_version": None}, "engine: builder.* is None, expected a text"),
        ({"precision": "fp8"}, "engine: precision is 'fp8', expected fp32 or "),
        ({"precision": ["fp32"]}, r"engine: precision is \['fp32'\], expected a text"),
        ({"inputs": {}}, "engine: inputs is {}, expected an object"),
        ({"inputs": {"x": {"type": "int8", "shape": [1, 1, 1, 1]}, "t": {"type": "int64", "shape": [1]}}}, "type of x"),
        ({"time_path": "folded"}, "engine: time_path is 'folded', expected an object"),
    ],
)
def test_a_field_that_makes_no_sense(tmp_path, name, change, says):
    values = json.loads(sidecar_path(RECORDED / name).read_text())
    (values if change.keys() <= values.keys() else values["engine"]).update(change)
    sidecar_path(tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(InputError, match=f"{name}.json: {says}|{name}.json: engine: .*{says}") as caught:
        read_sidecar(tmp_path / name, KINDS[name])
    assert KINDS[name].rebuild in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '{"format": 1}'])
def test_what_is_no_sidecar(tmp_path, name, text):
    sidecar_path(tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}.json: "):
        read_sidecar(tmp_path / name, KINDS[name])
