"""Which library runs an ONNX file, by the facts it is decided from."""

import platform

import pytest

from commands.errors import DeviceUnavailableError
from diffusion.errors import InputError
from runtime.engines import onnx_opening
from runtime.engines.onnx_opening import choose_backend

AVX2 = frozenset({"sse4_2", "avx2", "fma"})


@pytest.mark.parametrize(
    ("installed", "machine", "flags", "chosen", "reason"),
    [
        ({"onnxruntime", "openvino"}, "x86_64", AVX2, "openvino", "this CPU has AVX2"),
        ({"onnxruntime", "openvino"}, "x86_64", frozenset({"sse4_2"}), "onnxruntime", "this CPU has no AVX2"),
        ({"onnxruntime", "openvino"}, "aarch64", frozenset(), "onnxruntime", "this CPU has no AVX2"),
        ({"onnxruntime"}, "x86_64", AVX2, "onnxruntime", "OpenVINO is not installed"),
        ({"openvino"}, "aarch64", frozenset(), "openvino", "ONNX Runtime is not installed"),
    ],
)
def test_auto_goes_by_facts(monkeypatch, installed, machine, flags, chosen, reason):
    monkeypatch.setattr(onnx_opening, "_installed", lambda module: module in installed)
    monkeypatch.setattr(onnx_opening, "_cpu_flags", lambda: flags)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert (choose_backend("auto", "cpu").backend, choose_backend("auto", "cpu").reason) == (chosen, reason)
    for name in installed:
        assert choose_backend(name, "cpu") == onnx_opening.BackendChoice(name)
    for name in {"onnxruntime", "openvino"} - installed:
        with pytest.raises(DeviceUnavailableError, match=rf"{name!r} is not installed; pip install"):
            choose_backend(name, "cpu")


def test_a_gpu_is_for_onnx_runtime(monkeypatch):
    assert choose_backend("auto", "cuda").backend == "onnxruntime"
    with pytest.raises(InputError, match="`backend=openvino` runs on the CPU, but `device` is cuda"):
        choose_backend("openvino", "cuda")
    with pytest.raises(InputError, match="backend is 'torch', expected one of auto, onnxruntime, openvino"):
        choose_backend("torch", "cpu")
    monkeypatch.setattr(onnx_opening, "_installed", lambda module: False)
    for device in ("cpu", "cuda"):
        with pytest.raises(DeviceUnavailableError, match="an ONNX file needs ONNX Runtime"):
            choose_backend("auto", device)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86-64 CPU")
def test_flags_are_read():
    assert "sse2" in onnx_opening._cpu_flags()
