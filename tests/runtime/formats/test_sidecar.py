"""Sidecars are read, and written again without a loss; one that was changed, or lacks a field, is refused."""

import json
from pathlib import Path

import pytest

from diffusion.errors import InputError
from runtime.formats.digest import DIGEST, sealed_text
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
        ({"format": True}, "format is True, this version reads 2; install the version that wrote it"),
        ({"sha256": 5}, "sha256 is 5, expected a SHA-256"),
        ({"process": []}, r"process is \[\], expected an object"),
        ({"engine": None}, "engine is None, expected an object"),
        ({"golden_sha256": ""}, "golden_sha256 is '', expected a SHA-256"),
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
    sidecar_path(tmp_path / name).write_text(sealed_text(values))
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


@pytest.mark.parametrize("name", KINDS)
def test_every_field_must_be_there_and_no_other(tmp_path, name):
    # `read_sidecar` would have a default for most of them, which may be another value than the one that was lost.
    whole = json.loads(sidecar_path(RECORDED / name).read_text())
    del whole[DIGEST]

    def refused(change):
        values = json.loads(json.dumps(whole))
        change(values)
        sidecar_path(tmp_path / name).write_text(sealed_text(values))
        with pytest.raises(InputError) as caught:
            read_sidecar(tmp_path / name, KINDS[name])
        return str(caught.value)

    for part in ("engine", "verification", "process"):
        for field in whole[part]:
            said = refused(lambda values, part=part, field=field: values[part].pop(field))
            assert f"{part}." in said or field in said, said
        assert "later' is not known to this ver" in refused(lambda values, part=part: values[part].update(later=1)), (
            part
        )
    assert f"{name}.json: the field 'later' is not known" in refused(lambda values: values.update(later=1))
    chain = refused(lambda values: values["verification"]["chain"].pop("steps"))
    assert f"{name}.json: the field 'verification.chain.steps' is missing; make it again with `python" in chain
    assert "engine.inputs.x.later' is not" in refused(lambda values: values["engine"]["inputs"]["x"].update(later=1))


@pytest.mark.parametrize("name", KINDS)
def test_a_changed_value_and_a_lost_digest(tmp_path, name):
    text = sidecar_path(RECORDED / name).read_text()
    for old, new in (
        ('"clip_sample": 1.0', '"clip_sample": 1.5'),
        ('"digest"', '"digesT"'),
        ('"format": 2', '"format": 1'),
    ):
        assert text.count(old) == 1
        sidecar_path(tmp_path / name).write_text(text.replace(old, new))
        with pytest.raises(
            InputError, match=r"digest is .*, but the other fields have sha256:|format is 1, this version"
        ):
            read_sidecar(tmp_path / name, KINDS[name])
