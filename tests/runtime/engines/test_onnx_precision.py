"""The precision of an ONNX file by its metadata, and what follows from it."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from commands.errors import DeviceUnavailableError
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.engines import onnx_opening
from runtime.engines.onnx_device import OnnxDeviceEngine
from runtime.engines.onnx_opening import choose_backend
from runtime.engines.onnx_precision import PRECISION_KEY
from runtime.engines.onnx_runtime import OnnxRuntimeEngine
from tests.gaussian import GaussianNetwork
from tests.runtime.engines.foreign_onnx import computes, onnx_precision
from tests.runtime.engines.shared_device import kernels, memory

__all__ = ["kernels", "memory"]  # fixtures

PROCESS = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", 40))
FLOAT32 = "fp32"


@pytest.fixture
def file(tmp_path):
    """Make a file that says it is of a precision."""

    def make(precision: str) -> Path:
        path = GaussianNetwork(PROCESS, 0.1, 0.4).save_onnx(tmp_path / "unet.onnx")
        if precision != FLOAT32:
            model = onnx.load(path)
            model.metadata_props.add(key=PRECISION_KEY, value=precision)
            # As later versions of the format may have: fields of every wire type, numbers of several bytes.
            unknown = b"\xf8\x07\x80\x80\x01" + b"\xf9\x07" + bytes(8) + b"\xfd\x07" + bytes(4)
            path.write_bytes(unknown + model.SerializeToString())
        return path

    return make


@pytest.mark.parametrize("precision", [FLOAT32, "fp16", "bf16"])
def test_metadata_tells(precision, file):
    path = file(precision)
    assert onnx_precision(path) == precision
    assert {entry.key for entry in onnx.load(path).metadata_props} >= {"ddpm-rt"}


def test_a_precision_of_another_version_is_refused(file):
    with pytest.raises(InputError, match="metadata ddpm-rt-precision is 'fp8', expected fp16 or bf16; make the file"):
        onnx_precision(file("fp8"))


@given(junk=st.binary(max_size=200))
def test_junk_is_refused_or_left_to_its_reader(tmp_path_factory, junk):
    path = tmp_path_factory.getbasetemp() / "junk.onnx"
    path.write_bytes(junk)
    with pytest.raises(InputError, match="cannot (be read|read it) as an ONNX model"):
        OnnxRuntimeEngine(path)


def test_engines_say_their_precision(file, memory):
    path = file("fp16")
    engine, device_engine = OnnxRuntimeEngine(path), OnnxDeviceEngine(path, memory=memory, device="cpu")
    assert engine.precision == device_engine.precision == "fp16"
    assert "(fp16, CPU)" in engine.name
    x, t = np.ones((2, 1, 4, 4), np.float32), np.array([3, 39], np.float32)
    found, expected = np.zeros_like(x), np.zeros_like(x)
    device_engine.bind(x, t, found)()
    engine.bind(x, t, expected)()
    np.testing.assert_array_equal(found, expected)
    assert OnnxRuntimeEngine(file(FLOAT32)).precision == FLOAT32


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="needs ONNX Runtime for CPUs")
def test_bf16_where_there_is_no_gpu(file):
    path = file("bf16")
    assert OnnxRuntimeEngine(path).precision == "bf16"  # ONNX Runtime has what is in it
    with pytest.raises(DeviceUnavailableError, match="or run on this machine with unet.xml, made by .*--bf16"):
        OnnxRuntimeEngine(path, "cuda")
    model = onnx.load(path)
    computes(TensorProto.BFLOAT16)(model)
    onnx.save(model, path)
    with pytest.raises(DeviceUnavailableError, match=r"has no bf16 convolutions on the CPU; .*`device=cuda`") as caught:
        OnnxRuntimeEngine(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(DeviceUnavailableError, match="or run on this machine with `device=cpu`"):
        OnnxRuntimeEngine(file("fp16"), "cuda")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_no_file_changes_its_precision_by_the_choice_of_a_backend(precision, monkeypatch):
    installed = {"onnxruntime", "openvino"}
    monkeypatch.setattr(onnx_opening, "_installed", lambda module: module in installed)
    monkeypatch.setattr(onnx_opening, "_cpu_flags", lambda: frozenset({"avx2", "fma"}))
    choice = choose_backend("auto", "cpu", precision)
    assert (choice.backend, choice.reason) == ("onnxruntime", f"OpenVINO does not run {precision} files as they are")
    assert choose_backend("openvino", "cpu", precision).backend == "openvino"  # the engine itself refuses
    installed.remove("onnxruntime")
    with pytest.raises(DeviceUnavailableError, match="needs ONNX Runtime"):
        choose_backend("auto", "cpu", precision)
