"""What other programs say: the build's command, compute-sanitizer's verdict, TensorRT's modules."""

import json
import os
import stat
import subprocess
import sys
import types

import pytest

from benchmarks.gpu_check import build_stage, kernels_build, sanitizer_stage, tensorrt_modules
from benchmarks.gpu_check.context import StageContext, StageSkippedError
from benchmarks.gpu_check.sanitizer_stage import DONE, ERROR_EXIT_CODE, read_verdict
from runtime.device.driver import DriverFacts, Gpu

CLEAN = f"========= COMPUTE-SANITIZER\n{DONE}\n========= ERROR SUMMARY: 0 errors\n"
CLEAN_RACES = (
    f"========= COMPUTE-SANITIZER\n{DONE}\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
)
OUT_OF_BOUNDS = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at void step_kernel<(int)0, (bool)0, float>(StepJob)+0x90
========= ERROR SUMMARY: 1 error
"""
RACE = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at 0x50 and Read access at 0x90 in step_kernel
all launches are done
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
UNSUPPORTED = """========= COMPUTE-SANITIZER
========= Error: Device not supported. Please refer to the "Supported Devices" section of the sanitizer documentation
=========
Traceback (most recent call last):
RuntimeError: cudaSetDevice failed: unknown error (cudaErrorUnknown)
========= Target application returned an error
========= ERROR SUMMARY: 0 errors
"""


@pytest.mark.parametrize(
    ("code", "output", "outcome", "reason"),
    [
        (0, CLEAN, "clean", ""),
        (0, CLEAN_RACES, "clean", ""),
        (ERROR_EXIT_CODE, OUT_OF_BOUNDS, "errors", "Invalid __global__ write"),
        (ERROR_EXIT_CODE, RACE, "errors", "Error: Race reported"),
        (1, UNSUPPORTED, "refused", "Device not supported"),
        (1, CLEAN.replace(DONE, "ImportError: no module"), "refused", "ImportError"),
        (0, CLEAN.replace(DONE, ""), "refused", "SUMMARY"),  # its work did not come to its end
        (127, "", "refused", "it printed nothing (exit code 127)"),
    ],
)
def test_verdicts_of_the_sanitizer(code, output, outcome, reason):
    verdict = read_verdict(code, output)
    assert verdict.outcome == outcome
    assert reason in verdict.reason


def a_tool(folder, name, script):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def context(tmp_path):
    findings = {}
    made = StageContext(tmp_path / "work", findings.update)
    made.kernels = types.SimpleNamespace()
    made.findings = findings
    return made


def test_the_sanitizer_stage_runs_every_part_under_its_tool(context, tmp_path, monkeypatch):
    script = f"echo \"$@\" >> {tmp_path}/calls\nprintf '%s\\n' '{DONE}' '========= ERROR SUMMARY: 0 errors'"
    tool = a_tool(tmp_path, "compute-sanitizer", script)
    monkeypatch.setattr(sanitizer_stage, "find_cuda_tool", lambda name: tool)
    sanitizer_stage.run(context)
    assert context.failed_checks == []
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == len(sanitizer_stage.RUNS)
    for call, (check, part) in zip(calls, sanitizer_stage.RUNS, strict=True):
        assert f"--tool {check} --error-exitcode {ERROR_EXIT_CODE}" in call
        assert call.endswith(f"-m benchmarks.gpu_check.sanitized_work {context.work_folder} {part}")


def test_a_finding_fails_the_sanitizer_stage(context, tmp_path, monkeypatch):
    (tmp_path / "said").write_text(OUT_OF_BOUNDS)
    tool = a_tool(tmp_path, "compute-sanitizer", f"cat {tmp_path}/said; exit {ERROR_EXIT_CODE}")
    monkeypatch.setattr(sanitizer_stage, "find_cuda_tool", lambda name: tool)
    sanitizer_stage.run(context)
    assert len(context.failed_checks) == len(sanitizer_stage.RUNS)


@pytest.mark.parametrize("script", ["echo '========= Error: Device not supported'; exit 1", "sleep 30"])
def test_a_sanitizer_that_refuses_or_hangs_is_skipped_with_the_reason(context, tmp_path, monkeypatch, script):
    tool = a_tool(tmp_path, "compute-sanitizer", f"exec {script}" if script.startswith("sleep") else script)
    monkeypatch.setattr(sanitizer_stage, "find_cuda_tool", lambda name: tool)
    monkeypatch.setattr(sanitizer_stage, "_MAX_SECONDS", 0.3)
    with pytest.raises(StageSkippedError, match="refused: (Error: Device not supported|not done after)"):
        sanitizer_stage.run(context)
    assert {run["outcome"] for run in context.findings["figures"]["runs"]} == {"refused"}


def test_a_missing_sanitizer_is_named(context, monkeypatch):
    monkeypatch.setattr(sanitizer_stage, "find_cuda_tool", lambda name: None)
    with pytest.raises(StageSkippedError, match="compute-sanitizer is not on the PATH"):
        sanitizer_stage.run(context)


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
    with pytest.raises(StageSkippedError, match="the kernels were not built"):
        kernels_build.load_kernels(work)
    built = kernels_build.build_kernels(work, "9.0")
    assert built.name == "_kernels.abi.so"
    assert json.loads((work / "kernels.json").read_text()) == {"module": str(built)}
    kernels_build.forget_build(work)
    with pytest.raises(StageSkippedError):
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
        "from benchmarks.gpu_check.context import StageContext\n"
        "kernels = StageContext(pathlib.Path(sys.argv[1]), print).kernels\n"
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


def test_the_build_stage_checks_what_was_built(context, monkeypatch, tmp_path):
    gpu = Gpu(0, "NVIDIA Test", "9.0", 2**34, 132)
    monkeypatch.setattr(build_stage, "driver_facts", lambda: DriverFacts("580", "13.0", (gpu,), ""))
    monkeypatch.setattr(build_stage, "build_kernels", lambda folder, capability: folder / "_kernels.so")
    context.kernels = types.SimpleNamespace(
        cuda_architectures=lambda: ["80-real"], isa_levels=lambda: ["baseline"], cuda_device_facts=lambda ordinal: {}
    )
    context.memory = types.SimpleNamespace(name="host")
    build_stage.run(context)
    assert context.failed_checks == ["built for this GPU alone"]


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


def test_no_tensorrt_at_all_is_skipped(context, monkeypatch):
    monkeypatch.setattr(tensorrt_modules, "MODULES", ("no_such_tensorrt",))
    with pytest.raises(StageSkippedError, match="none of no_such_tensorrt is installed"):
        tensorrt_modules.run(context)
    assert context.findings["figures"]["lines"] == ["no_such_tensorrt: not installed"]
