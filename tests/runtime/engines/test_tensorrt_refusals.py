"""A plan or a sidecar that is wrong is refused before a driver is asked and before a module is imported."""

import re
import sys

import pytest

from diffusion.errors import InputError
from runtime.engines import tensorrt_refusals
from runtime.engines.opening import open_engine
from runtime.formats.sidecar import sidecar_path
from runtime.sample import main
from runtime.sampler import Sampler
from tests.runtime.engines.plan_files import NETWORK
from tests.runtime.engines.plan_machine import MODULES, Untouchable, change, plan_of, refusal


@pytest.fixture
def nothing_is_asked(monkeypatch):
    monkeypatch.setattr(tensorrt_refusals, "driver_facts", lambda: pytest.fail("the driver was asked"))
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, Untouchable(name))


@pytest.mark.usefixtures("nothing_is_asked")
def test_a_flipped_byte_and_a_truncated_plan(tmp_path, flavor):
    path = plan_of(tmp_path, flavor)
    content = path.read_bytes()
    for broken in (content[:-1], content[:100] + b"?" + content[101:], b"", content + b"\0"):
        path.write_bytes(broken)
        line = refusal(path)
        assert re.match(
            r"unet.plan: SHA-256 is [0-9a-f]{64}, but its sidecar was written for [0-9a-f]{64}; .*export.to_trt", line
        )


@pytest.mark.usefixtures("nothing_is_asked")
def test_missing_files(tmp_path):
    path = plan_of(tmp_path)
    path.unlink()
    assert "unet.plan: no such file; copy the whole engine, or" in refusal(path)
    sidecar_path(path).unlink()
    assert refusal(path).startswith("unet.plan: no such engine; make one with `python -m export.to_trt --out ")
    path.write_bytes(b"a plan of somebody else")
    line = refusal(path)
    assert line.startswith("unet.plan.json: no such file; expected the description of unet.plan beside it")
    assert "python -m export.to_trt" in line


@pytest.mark.usefixtures("nothing_is_asked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flavor": "openvino"}, "engine: flavor is 'openvino', expected tensorrt or tensorrt-rtx"),
        ({"builder_version": None}, "engine: builder_version is None, expected a text"),
        ({"precision": "int8"}, "engine: precision is 'int8', expected fp32 or fp16 or bf16"),
        ({"stripped": True}, "unet.plan: was built without its weights, expected a whole plan"),
        ({"batch_profiles": []}, "engine: batch_profiles is [], expected a list"),
        ({"batch_profiles": [{"min": 2, "opt": 1, "max": 4}]}, "expected 1 ≤ min ≤ opt ≤ max"),
        ({"batch_profiles": [{"min": 1}]}, "expected 1 ≤ min ≤ opt ≤ max"),
        ({"hardware_compatibility": "all"}, "expected none or ampere_plus or same_compute_capability"),
        ({"version_compatible": None}, "engine: version_compatible is None, expected true or false"),
        ({"compute_capabilities": "8.6"}, "engine: compute_capabilities is '8.6', expected a list"),
        ({"inputs": {"x": "float32"}}, "engine: inputs.x is 'float32', expected an object with type and shape"),
        ({"inputs": {"x": {"type": "float32", "shape": ["N", 2, 4, 6]}}}, "expected x [N, C, H, W], t [N] and one"),
        ({"outputs": {"p": {"type": "float16", "shape": ["N", 2, 4, 6]}}}, "type of p is 'float16', expected float32"),
        ({"outputs": {"p": {"type": "float32", "shape": ["N", 3, 4, 6]}}}, "output p is ['N', 3, 4, 6], expected"),
    ],
)
def test_a_sidecar_that_makes_no_sense(tmp_path, fields, message):
    assert message in refusal(plan_of(tmp_path, **fields))


@pytest.mark.usefixtures("nothing_is_asked")
def test_a_sidecar_of_an_engine_that_failed(tmp_path):
    path = plan_of(tmp_path)
    change(path, verification={"passed": False})
    assert "verification.passed is False, expected true" in refusal(path)


@pytest.mark.usefixtures("nothing_is_asked")
def test_the_cpu_was_asked_for(tmp_path, capsys):
    path = plan_of(tmp_path)
    NETWORK.save_onnx(tmp_path / "unet.onnx")
    assert main(["--engine", str(path), "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert "unet.plan: runs on an NVIDIA GPU, but --device is cpu; leave --device out, or give --engine " in line
    assert f"{tmp_path / 'unet.onnx'}, which runs here" in line
    with pytest.raises(InputError, match="`device` is cpu"):
        Sampler(path, device="cpu")
    with pytest.raises(InputError, match="`backend=onnxruntime` is for an ONNX file, but the engine is"):
        open_engine(path, backend="onnxruntime")
