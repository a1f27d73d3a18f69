"""What this machine lacks for a plan: refused before the plan is deserialized."""

import importlib
import re
import sys

import pytest

from commands.errors import DeviceUnavailableError
from diffusion.errors import InputError
from runtime.device.driver import DriverFacts, Gpu
from runtime.engines import tensorrt_modules, tensorrt_refusals
from runtime.engines.opening import open_engine
from runtime.engines.tensorrt_engine import TensorRtEngine
from runtime.engines.tensorrt_refusals import accept_plan
from runtime.formats.plan_description import PlanDescription
from runtime.formats.sidecar import golden_path, read_sidecar, sidecar_path
from runtime.sample import main
from tests.runtime.engines.host_memory import HostMemory
from tests.runtime.engines.openvino_files import save_engine
from tests.runtime.engines.plan_files import A10, NETWORK, NO_GPU, VERSIONS
from tests.runtime.engines.plan_machine import MODULES, Untouchable, plan_of, refusal
from tests.runtime.engines.tensorrt_fake import make_module


def test_no_driver_names_the_engine_that_runs_here(tmp_path, machine, flavor, capsys, monkeypatch):
    machine(NO_GPU)
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, Untouchable(name))
    path = plan_of(tmp_path, flavor)
    arguments = ["--engine", str(path), "--out", str(tmp_path / "out"), "--num", "1"]
    start = f"runtime.sample: {path}: no NVIDIA GPU found: no NVIDIA driver (libcuda.so.1 is not found)"

    assert main(arguments) == 4
    assert capsys.readouterr().err == f"{start}; make an engine that runs here with `python -m export.to_onnx`\n"
    save_engine(tmp_path / "unet.xml", NETWORK)
    assert main(arguments) == 4
    other = tmp_path / "unet.xml"
    assert capsys.readouterr().err == f"{start}; give --engine {other}, which runs here\n"
    NETWORK.save_onnx(tmp_path / "unet.onnx")
    assert main(arguments) == 4
    other = tmp_path / "unet.onnx"
    assert capsys.readouterr().err == f"{start}; give --engine {other}, which runs here\n"
    assert not (tmp_path / "out").exists()

    assert main(["--engine", str(other), *arguments[2:], "--steps", "2", "--format", "npy"]) == 0  # as it says


def test_an_engine_without_its_sidecar_does_not_run_here(tmp_path, machine):
    machine(NO_GPU)
    path = plan_of(tmp_path)
    save_engine(tmp_path / "unet.xml", NETWORK)
    sidecar_path(tmp_path / "unet.xml").unlink()
    assert "python -m export.to_onnx" in refusal(path, DeviceUnavailableError)


def test_no_module_is_imported_before_a_gpu_was_found(tmp_path, monkeypatch):
    imported = []
    monkeypatch.setattr(importlib, "import_module", imported.append)
    monkeypatch.setattr(tensorrt_refusals, "driver_facts", lambda: imported.append("the driver") or NO_GPU)
    with pytest.raises(DeviceUnavailableError):
        open_engine(plan_of(tmp_path))
    assert imported == ["the driver"]


@pytest.mark.parametrize(
    ("flavor", "compatible", "message"),
    [
        ("tensorrt", False, "TensorRT, and the module 'tensorrt' is not installed; pip install tensorrt==10.13.0.35 ("),
        ("tensorrt", True, "TensorRT, and the module 'tensorrt' or 'tensorrt_lean' is not installed; pip install"),
        (
            "tensorrt-rtx",
            False,
            "TensorRT-RTX, and the module 'tensorrt_rtx' is not installed; pip install tensorrt-rtx==",
        ),
    ],
)
def test_the_module_is_not_installed(tmp_path, machine, flavor, compatible, message):
    machine(tensorrt_lean="10.13.0.35") if not compatible else machine()
    path = plan_of(tmp_path, flavor, version_compatible=compatible)
    assert f"unet.plan: needs {message}" in refusal(path, DeviceUnavailableError)


def test_a_module_of_the_other_flavor_is_not_taken(tmp_path, machine):
    machine(tensorrt=VERSIONS["tensorrt-rtx"], tensorrt_lean=VERSIONS["tensorrt-rtx"])
    assert "needs TensorRT-RTX" in refusal(plan_of(tmp_path, "tensorrt-rtx"), DeviceUnavailableError)
    machine(tensorrt_rtx=VERSIONS["tensorrt"])
    sys.modules["tensorrt"] = sys.modules["tensorrt_lean"] = None
    assert "needs TensorRT, " in refusal(plan_of(tmp_path, "tensorrt"), DeviceUnavailableError)


def test_a_module_that_does_not_load(tmp_path, machine, monkeypatch):
    machine()
    (tmp_path / "tensorrt_rtx").mkdir()
    (tmp_path / "tensorrt_rtx" / "__init__.py").write_text("raise ImportError('libtensorrt_rtx.so.1: cannot open')")
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")
    monkeypatch.syspath_prepend(tmp_path)
    line = refusal(plan_of(tmp_path), DeviceUnavailableError)
    assert line.startswith("the module 'tensorrt_rtx' is installed and does not load (libtensorrt_rtx.so.1: cannot op")


def test_a_module_that_is_too_old(tmp_path, machine):
    machine(tensorrt="10.13.0.35")
    del sys.modules["tensorrt"].IExecutionContext.set_device_memory  # which came with 10.1
    line = refusal(plan_of(tmp_path, "tensorrt"), DeviceUnavailableError)
    assert "has no IExecutionContext.set_device_memory, expected TensorRT 10.8 or" in line


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_lean"])
def test_a_tensorrt_that_can_dump_core_is_refused(machine, name):
    """setDeviceMemoryV2 of 10.1 to 10.7, for plans without weight streaming."""
    for version in ("10.1.0.27", "10.7.0.23"):
        machine(**{name: version})
        with pytest.raises(DeviceUnavailableError, match=rf"'{name}' is of version {version}, expected 10.8 or later"):
            tensorrt_modules.import_tensorrt(name)
    for version in ("10.8.0.43", "11.1.0.2"):
        machine(**{name: version})
        assert tensorrt_modules.import_tensorrt(name).__version__ == version
    machine(tensorrt_rtx="1.7.1.116")
    assert tensorrt_modules.import_tensorrt("tensorrt_rtx") is not None


@pytest.mark.parametrize(
    ("flavor", "installed", "compatible", "expected"),
    [
        ("tensorrt", "11.1.0.2", False, "major version 10"),
        ("tensorrt", "11.1.0.2", True, "major version 10"),
        ("tensorrt", "9.3.0", True, "major version 10"),
        ("tensorrt", "10.14.1.48", False, "release 10.13, because it was not built version-compatible"),
        ("tensorrt", "10.12.0.36", True, "10.13.0.35 or later"),
        ("tensorrt-rtx", "2.0.0.1", False, "major version 1"),
        ("tensorrt-rtx", "1.6.0.50", False, "release 1.7, because it was not built version-compatible"),
    ],
)
def test_another_version(tmp_path, machine, flavor, installed, compatible, expected):
    module = flavor.replace("-", "_")
    machine(**{module: installed})
    title = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}[flavor]
    line = refusal(plan_of(tmp_path, flavor, version_compatible=compatible))
    built = VERSIONS[flavor]
    assert line.startswith(
        f"unet.plan: was built by {title} {built}, and {module} {installed} is installed, expected {expected}; "
        f"build it again with `python -m export.to_trt`, or pip install {flavor}=={built}"
    )


@pytest.mark.parametrize(
    ("installed", "compatible", "taken"),
    [
        ({"tensorrt": "10.13.3.9"}, False, "tensorrt"),
        ({"tensorrt": "10.14.1.48", "tensorrt_lean": "10.14.1.48"}, True, "tensorrt"),
        ({"tensorrt_lean": "10.14.1.48"}, True, "tensorrt_lean"),
        ({"tensorrt": "11.1.0.2", "tensorrt_lean": "10.13.0.35"}, True, "tensorrt_lean"),
    ],
)
def test_versions_that_fit(tmp_path, machine, installed, compatible, taken):
    machine(**installed)
    accepted = accept_plan(plan_of(tmp_path, "tensorrt", version_compatible=compatible))
    assert accepted.module is sys.modules[taken]
    assert accepted.runtime == f"{taken} {installed[taken]}"
    assert accepted.content.tobytes() == b"\0plan" * 50


@pytest.mark.parametrize(
    ("flavor", "capability", "fields", "message"),
    [
        ("tensorrt-rtx", "9.0", {}, "for compute capability 8.0, 8.6, 8.9, but NVIDIA X has 9.0"),
        ("tensorrt-rtx", "8.7", {}, "for compute capability 8.0, 8.6, 8.9, but NVIDIA X has 8.7"),
        ("tensorrt", "8.9", {}, "for compute capability 8.6, but NVIDIA X has 8.9"),
        ("tensorrt", "8.9", {"hardware_compatibility": "SAME_COMPUTE_CAPABILITY"}, "8.6, but NVIDIA X has 8.9"),
        ("tensorrt", "7.5", {"hardware_compatibility": "ampere_plus"}, "8.6 and later, but NVIDIA X has 7.5"),
        ("tensorrt", "10.0", {"hardware_compatibility": "ampere_plus"}, None),
        ("tensorrt", "8.6", {}, None),
        ("tensorrt-rtx", "8.9", {}, None),
    ],
)
def test_another_gpu(tmp_path, machine, flavor, capability, fields, message):
    machine(
        DriverFacts("580.95.05", "13.0", (Gpu(0, "NVIDIA X", capability, 1 << 34, 10),), ""),
        **{flavor.replace("-", "_"): VERSIONS[flavor]},
    )
    path = plan_of(tmp_path, flavor, **fields)
    if message is None:
        assert accept_plan(path).gpu.name == "NVIDIA X"
    else:
        line = refusal(path)
        assert line.startswith("unet.plan: was built")
        assert message in line
        assert line.endswith("build it again with `python -m export.to_trt` for this GPU")


def test_another_gpu_of_the_same_capability_warns(tmp_path, machine, capsys):
    gpu = Gpu(0, "NVIDIA RTX A6000", "8.6", 48 << 30, 84)
    machine(DriverFacts("580.95.05", "13.0", (gpu,), ""), tensorrt=VERSIONS["tensorrt"])
    accept_plan(plan_of(tmp_path, "tensorrt"))
    line = capsys.readouterr().err
    assert "unet.plan was built on NVIDIA A10 and runs on NVIDIA RTX A6000, of compute capability 8.6 too" in line
    machine(tensorrt=VERSIONS["tensorrt"])
    accept_plan(plan_of(tmp_path, "tensorrt"))
    assert capsys.readouterr().err == ""


# The two ways in which a deserializer is reached, and what happens then.


@pytest.mark.parametrize("broken", ["get_engine_validity", "deserialize_cuda_engine"])
def test_what_tensorrt_says_itself(tmp_path, machine, monkeypatch, broken):
    machine()
    module = make_module("tensorrt_rtx", VERSIONS["tensorrt-rtx"], NETWORK, broken={broken})
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    accepted = accept_plan(plan_of(tmp_path))
    reason = {
        "get_engine_validity": "VERSION_MISMATCH, UNSUPPORTED_CC: get_engine_validity fails: in test.cpp",
        "deserialize_cuda_engine": "its deserializer returns None: deserialize_cuda_engine fails: in test.cpp",
    }[broken]
    expected = f"unet.plan: TensorRT-RTX 1.7.1.116 on NVIDIA A10 does not take this plan, built by 1.7.1.116 ({reason})"
    with pytest.raises(InputError, match=re.escape(expected) + "; build it again with `python -m export.to_trt`"):
        TensorRtEngine(accepted, memory=HostMemory())


def test_the_sidecar_is_given_by_an_exporter(tmp_path, machine):
    machine(tensorrt_rtx=VERSIONS["tensorrt-rtx"])
    path = plan_of(tmp_path)
    sidecar = read_sidecar(path, PlanDescription)
    sidecar_path(path).unlink()
    golden_path(path).unlink()
    accepted = accept_plan(path, sidecar)
    assert accepted.sidecar is sidecar
    assert accepted.gpu == A10
