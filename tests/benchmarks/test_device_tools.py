"""What other programs say: the build's command, TensorRT's modules."""

import json
import os
import stat
import subprocess
import sys
import types

import pytest

from benchmarks.device import command, facts, gpu_machine, kernels_build, tensorrt_modules
from benchmarks.device.findings import Findings, SkippedError
from benchmarks.device.gpu_machine import GpuMachine
from runtime.device.driver import DriverFacts, Gpu


def a_tool(folder, name, script):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def found():
    return {}


@pytest.fixture
def findings(found):
    return Findings(found.update)


def test_the_build_is_for_this_python_and_this_gpu_alone(tmp_path):
    command = kernels_build.configure_command(tmp_path, "12.0", "/cuda/bin/nvcc")
    assert f"-DPython_EXECUTABLE={sys.executable}" in command
    assert "-DCMAKE_CUDA_ARCHITECTURES=120-real" in command
    assert "-DCMAKE_CUDA_COMPILER=/cuda/bin/nvcc" in command
    assert command[command.index("-B") + 1] == str(tmp_path / "kernels")


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Programs that stand for CMake, nvcc and ninja; the build leaves an empty module."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tree = tmp_path / "work" / "kernels"
    script = f'if [ "$1" = --build ]; then echo building; touch {tree}/_kernels.abi.so; else mkdir -p {tree}; fi'
    a_tool(folder, "cmake", script)
    for name in ("nvcc", "ninja"):
        a_tool(folder, name, "exit 0")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "work").mkdir()
    return folder


def test_the_module_that_was_built_is_found_by_its_record(tools, tmp_path, monkeypatch):
    work = tmp_path / "work"
    with pytest.raises(SkippedError, match="the kernels were not built"):
        kernels_build.load_kernels(work)
    built = kernels_build.build_kernels(work, "9.0")
    assert built.name == "_kernels.abi.so"
    assert json.loads((work / "kernels.json").read_text()) == {"module": str(built)}
    kernels_build.forget_build(work)
    with pytest.raises(SkippedError):
        kernels_build.load_kernels(work)


def test_another_module_that_was_imported_before_is_noticed(tools, tmp_path):
    from runtime import _kernels  # noqa: F401  the one that is installed

    kernels_build.build_kernels(tmp_path / "work", "9.0")
    with pytest.raises(ImportError, match="was imported from .* before"):
        kernels_build.load_kernels(tmp_path / "work")


def test_the_built_module_is_the_one_that_the_runtime_imports(tmp_path):
    """In a process of its own, with the module that is installed here standing for the one that was built."""
    from runtime import _kernels

    built = tmp_path / "elsewhere" / "_kernels.so"
    built.parent.mkdir()
    built.symlink_to(_kernels.__file__)
    (tmp_path / "kernels.json").write_text(json.dumps({"module": str(built)}))
    code = (
        "import sys, pathlib\n"
        "from benchmarks.device.gpu_machine import GpuMachine\n"
        "kernels = GpuMachine(pathlib.Path(sys.argv[1])).kernels\n"
        "import runtime\n"
        "from runtime.kernels_module import import_kernels\n"
        "assert import_kernels() is kernels is runtime._kernels\n"
        "print(kernels.__file__)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=kernels_build.ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(built)


def test_a_build_that_fails_says_how(tools, tmp_path):
    a_tool(tools, "cmake", "echo 'CMake Error: no such compiler'; exit 1")
    with pytest.raises(RuntimeError, match="cmake -S ended with 1: CMake Error: no such compiler"):
        kernels_build.build_kernels(tmp_path / "work", "9.0")


@pytest.mark.parametrize("missing", ["nvcc", "cmake"])
def test_a_build_without_its_tools_fails(tools, tmp_path, monkeypatch, missing):
    (tools / missing).unlink()
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(kernels_build, "_CUDA_FOLDERS", ())
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match=f"{missing} is not on the PATH"):
        kernels_build.build_kernels(tmp_path / "work", "9.0")


def test_the_build_is_checked(findings, found, monkeypatch, tmp_path):
    gpu = Gpu(0, "NVIDIA Test", "9.0", 2**34, 132)
    monkeypatch.setattr(gpu_machine, "driver_facts", lambda: DriverFacts("580", "13.0", (gpu,), ""))
    built = []
    monkeypatch.setattr(gpu_machine, "build_kernels", lambda *given: built.append(given))
    machine = GpuMachine(tmp_path)
    machine.kernels = types.SimpleNamespace(
        cuda_architectures=lambda: ["80-real"], isa_levels=lambda: ["baseline"], cuda_device_facts=lambda ordinal: {}
    )
    monkeypatch.setattr(gpu_machine, "load_kernels", lambda folder: machine.kernels)
    machine.memory = types.SimpleNamespace(name="host")
    facts.build(machine, findings)
    assert built == [(tmp_path, "9.0")]
    assert findings.failed_checks == ["built for this GPU alone"]
    assert {"nvidia_smi", "tools", "packages", "device"} <= set(found["figures"])


class Severity(int):
    WARNING = 2


def a_tensorrt(builder_works=True, **more):
    class ILogger:
        pass

    ILogger.Severity = Severity

    class Runtime:
        def __init__(self, logger):
            logger.log(Severity(4), "verbose")
            logger.log(Severity(1), "a warning")

    class Builder:
        def __init__(self, logger):
            if not builder_works:
                logger.log(Severity(1), "Target GPU SM 90 is not supported")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags):
            raise ValueError("no networks here")

    return types.SimpleNamespace(__version__="10.13", ILogger=ILogger, Runtime=Runtime, Builder=Builder, **more)


def test_a_probe_goes_on_until_the_module_refuses(monkeypatch):
    told = []
    monkeypatch.setitem(sys.modules, "tensorrt", a_tensorrt(builder_works=False))
    report = tensorrt_modules.probe("tensorrt", lambda report: told.append(json.dumps(report)))
    assert report["version"] == "10.13"
    assert report["steps"]["runtime"] == {"outcome": "done", "said": ["[1] a warning"]}
    assert report["steps"]["builder"]["said"] == ["[1] Target GPU SM 90 is not supported"]
    assert list(report["steps"]) == ["runtime", "builder"]
    assert tensorrt_modules.summary(report).startswith("10.13: builder refused, TypeError: pybind11")
    assert "Target GPU SM 90" in tensorrt_modules.summary(report)
    assert json.loads(told[1])["steps"] == {"runtime": {"outcome": "begun", "said": []}}

    monkeypatch.setitem(sys.modules, "tensorrt", a_tensorrt())
    report = tensorrt_modules.probe("tensorrt", lambda report: None)
    assert report["steps"]["plan"]["outcome"] == "ValueError: no networks here"


def test_a_module_that_ends_its_process_is_recorded():
    output = 'noise\n{"version": "11.4", "steps": {"runtime": {"outcome": "begun", "said": []}}}\nmore noise\n'
    report = tensorrt_modules.last_report(output) | {"crashed": "the process ended with -11"}
    assert tensorrt_modules.summary(report) == "11.4: the process ended with -11 during runtime"
    assert tensorrt_modules.last_report("nothing") == {"steps": {}}


def test_no_tensorrt_at_all_is_skipped(findings, found, monkeypatch):
    monkeypatch.setattr(tensorrt_modules, "MODULES", ("no_such_tensorrt",))
    with pytest.raises(SkippedError, match="none of no_such_tensorrt is installed"):
        tensorrt_modules.run(None, findings)
    assert found["figures"]["lines"] == ["no_such_tensorrt: not installed"]


def test_a_measurement_alone_needs_a_gpu_or_what_stands_for_it(tmp_path, capsys, monkeypatch):
    absent = DriverFacts(None, None, (), "the NVIDIA driver finds no GPU")
    monkeypatch.setattr("runtime.device.driver.driver_facts", lambda: absent)
    assert command.main(["bandwidth"]) == 4
    assert "bandwidth: no NVIDIA GPU found: the NVIDIA driver finds no GPU" in capsys.readouterr().err
    left = []
    monkeypatch.setattr(command, "leave", left.append)
    monkeypatch.setenv("DDPM_RT_GPU_MACHINE", "builtins:str")
    monkeypatch.setitem(command.MEASUREMENTS, "bandwidth", ("tensorrt_modules:run", {}))
    monkeypatch.setattr(tensorrt_modules, "MODULES", ())
    command.main(["bandwidth", "--work-folder", str(tmp_path), "--out", str(tmp_path / "found.json")])
    assert json.loads((tmp_path / "found.json").read_text())["status"] == "skipped"
    monkeypatch.setattr(tensorrt_modules, "run", lambda machine, findings: findings.check("right", False))
    command.main(["bandwidth"])
    assert left == [0, 3]
    assert '"status": "failed"' in capsys.readouterr().out
