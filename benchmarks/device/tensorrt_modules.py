"""What the TensorRT modules that are installed say to this GPU, step by step, until one of them says no.

Each in a process of its own, because some end the process where others raise an error.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.device.findings import Findings, SkippedError
from benchmarks.device.gpu_machine import GpuMachine
from benchmarks.device.kernels_build import ROOT

MODULES = ("tensorrt", "tensorrt_lean", "tensorrt_rtx")
BEGUN, DONE = "begun", "done"
_MAX_SECONDS = 25.0


def run(machine: GpuMachine, findings: Findings) -> None:
    """Ask every module."""
    del machine
    findings.record("modules", {})
    reports = {}
    for name in MODULES:
        reports[name] = probe_in_subprocess(name)
        findings.record("modules", reports)
        findings.add("lines", f"{name}: {summary(reports[name])}")
    if all("not_installed" in report for report in reports.values()):
        raise SkippedError(f"none of {', '.join(MODULES)} is installed")


def probe_in_subprocess(name: str) -> dict[str, Any]:
    """As `probe`, in a process of its own; how it ended, where it did not end well."""
    command = [sys.executable, "-m", "benchmarks.device.tensorrt_modules", name]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_MAX_SECONDS, check=False)
        output, errors, ending = done.stdout, done.stderr, f"the process ended with {done.returncode}"
        crashed = done.returncode != 0
    except subprocess.TimeoutExpired as error:
        output, errors = ((part or b"").decode(errors="replace") for part in (error.stdout, error.stderr))
        ending, crashed = f"the process was ended after {_MAX_SECONDS:.0f} s", True
    print(errors, flush=True)
    report = last_report(output)
    if crashed:
        report["crashed"] = ending
    return report


def last_report(output: str) -> dict[str, Any]:
    """The last of the JSON objects, one a line, among what else libraries print."""
    for line in reversed(output.splitlines()):
        try:
            report: Any = json.loads(line)
        except ValueError:
            continue
        if isinstance(report, dict):
            return report
    return {"steps": {}}


def probe(name: str, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Import, runtime, builder, a plan of one layer, and its run, as far as the module goes with it.

    Args:
        name: of the module.
        tell: is called with the report before and after every step.
    """
    tell({"version": None, "steps": {"import": {"outcome": BEGUN, "said": []}}})
    try:
        module: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        return {"not_installed" if error.name == name else "import_error": str(error)}
    except Exception as error:  # whatever its libraries do when they do not find theirs
        return {"import_error": f"{type(error).__name__}: {error}"}
    report: dict[str, Any] = {"version": str(getattr(module, "__version__", None)), "steps": {}}
    said: list[str] = []
    logger = _logger(module, said)

    def step(what: str, act: Callable[[], Any]) -> Any:
        before = len(said)
        report["steps"][what] = {"outcome": BEGUN, "said": []}
        tell(report)
        try:
            value = act()
        except Exception as error:  # its own exceptions, which differ between versions
            outcome, value = f"{type(error).__name__}: {error}", None
        else:
            outcome = "returned None" if value is None else DONE
        report["steps"][what] = {"outcome": outcome, "said": said[before:][:10]}
        tell(report)
        return value

    runtime = step("runtime", lambda: module.Runtime(logger))
    if not hasattr(module, "Builder"):
        return report
    builder = step("builder", lambda: module.Builder(logger))
    if builder is None:
        return report
    plan = step("plan", lambda: _one_layer_plan(module, builder))
    if plan is None or runtime is None:
        return report
    engine = step("deserialize", lambda: runtime.deserialize_cuda_engine(plan))
    if engine is not None:
        step("context", engine.create_execution_context)
    return report


def summary(report: dict[str, Any]) -> str:
    """One line."""
    for key in ("not_installed", "import_error"):
        if key in report:
            return f"{key.replace('_', ' ')} ({report[key]})" if key == "import_error" else "not installed"
    steps, version = report["steps"], report.get("version")
    refused = next((what for what, step in steps.items() if step["outcome"] != DONE), None)
    if "crashed" in report:
        said = [line for step in steps.values() for line in step["said"]]
        return " | ".join([f"{version}: {report['crashed']} during {refused or 'its own end'}", *said[-2:]])
    if refused is None:
        return f"{version}: {', '.join(steps)} done"
    step = steps[refused]
    return f"{version}: {refused} refused, {' | '.join([step['outcome'], *step['said'][:2]])}"


def _logger(module: Any, said: list[str]) -> Any:
    class Logger(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.Severity.WARNING:
                said.append(f"[{str(severity).rpartition('.')[2]}] {message}")

    return Logger()


def _one_layer_plan(module: Any, builder: Any) -> Any:
    """relu(x), x float32 [1, 3, 8, 8], built for the GPU that is here."""
    # Explicit batches and strong types are the only kind in later versions, where neither flag is left.
    network = builder.create_network(0)
    x = network.add_input("x", module.DataType.FLOAT, (1, 3, 8, 8))
    layer = network.add_activation(x, module.ActivationType.RELU)
    network.mark_output(layer.get_output(0))
    return builder.build_serialized_network(network, builder.create_builder_config())


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1], lambda report: print(json.dumps(report), flush=True))), flush=True)
