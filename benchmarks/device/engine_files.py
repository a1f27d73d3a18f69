"""Engines that come from files, each built here from the same checkpoint: ONNX Runtime's CUDA provider and plans.

They need the exporter's libraries; where one is missing, that is the record.
"""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.device.findings import Findings, SkippedError
from benchmarks.device.gpu_machine import GpuMachine
from benchmarks.device.kernels_build import ROOT
from benchmarks.device.network_error import TOLERANCES, largest_error
from benchmarks.device.wall_clock import NUM_STEPS, ChainSampler, compare_seconds, comparison_lines, rounds_for
from benchmarks.measurement import time_alternately
from commands.errors import DeviceUnavailableError, VerificationError
from diffusion.errors import InputError

FLAVORS = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
"""`--flavor` of export.to_trt by module."""
PRECISION_FLAGS: dict[str, list[str]] = {"fp16": ["--fp16"], "bf16": ["--bf16"], "fp32": []}
# TF32, which builders use for float32, keeps 11 bits of each factor, as fp16 does.
_TOLERANCES = TOLERANCES | {"fp32": 5e-3}
GROUP_NORMS = ("instance", "group")
"""`--group-norm` of export.to_trt: in fp16 most of the error is in InstanceNormalization (NVIDIA/TensorRT#2691)."""
BATCH_SIZES = (1, 8, 64)
_SECONDS_PER_CASE = 10.0
_OURS = "ours"


def run_onnx(machine: GpuMachine, findings: Findings) -> None:
    """ONNX Runtime's CUDA provider."""
    onnx = exported_onnx(machine)
    measure_engine(machine, findings, onnx, "onnxruntime, fp32", "fp32")


def run_tensorrt(machine: GpuMachine, findings: Findings) -> None:
    """Plans of all TensorRT flavors that are installed."""
    onnx = exported_onnx(machine)
    installed = [flag for flag, module in FLAVORS.items() if importlib.util.find_spec(module) is not None]
    if not installed:
        raise SkippedError(f"none of {', '.join(FLAVORS.values())} is installed")
    for flavor, form in itertools.product(installed, GROUP_NORMS):
        for precision, flags in PRECISION_FLAGS.items():
            name = f"{flavor}, {precision}, {form} norm"
            plan = machine.work_folder / f"unet.{flavor}.{precision}.{form}.plan"
            begin = time.monotonic()
            words = ["--onnx", str(onnx), "--flavor", flavor, "--out", str(plan), "--max-batch", "64", *flags]
            refusal = run_command("export.to_trt", [*words, "--group-norm", form])
            if refusal:
                findings.add("engines", {"name": name, "left_out": refusal})
                continue
            findings.add("builds", {"name": name, "seconds": round(time.monotonic() - begin, 1)})
            measure_engine(machine, findings, plan, name, precision)


def exported_onnx(machine: GpuMachine) -> Path:
    """The network as an ONNX file.

    Raises:
        SkippedError: it cannot be exported here.
    """
    checkpoint = machine.checkpoint()
    onnx = machine.work_folder / "unet.onnx"
    if not onnx.exists():
        refusal = run_command("export.to_onnx", ["--checkpoint", str(checkpoint), "--out", str(onnx)])
        if refusal:
            raise SkippedError(f"export.to_onnx: {refusal}")
    return onnx


def run_command(module: str, words: list[str]) -> str:
    """Run one of our commands in a process of its own; its last line if it failed, else nothing."""
    command = [sys.executable, "-m", module, *words]
    print("+", *command, flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout, flush=True)
    lines = done.stdout.strip().splitlines()
    return "" if done.returncode == 0 else f"exit {done.returncode}: {lines[-1] if lines else 'it printed nothing'}"


def measure_engine(machine: GpuMachine, findings: Findings, path: Path, name: str, precision: str) -> None:
    """Open an engine as users do, compare its predictions with PyTorch's, and time its chains."""
    from runtime.engines.opening import open_engine

    try:
        engine: Any = open_engine(path, device="cuda", backend="onnxruntime" if path.suffix == ".onnx" else "auto")
    except VerificationError as refusal:
        findings.check(f"{name}: verified at its first use", False, str(refusal))
        return
    except (InputError, DeviceUnavailableError, RuntimeError) as refusal:
        findings.add("engines", {"name": name, "left_out": str(refusal)})
        return
    error = largest_error(engine, machine.reference(), 2)
    tolerance = _TOLERANCES[precision]
    findings.check(f"{name}: predictions within {tolerance:g} of PyTorch's", error <= tolerance, f"{error:.2e}")
    entry: dict[str, Any] = {"name": name, "engine": engine.name, "prediction_error": error, "batches": []}
    for batch_size in BATCH_SIZES:
        try:
            sampler = ChainSampler(engine, batch_size)
        except InputError as refusal:
            entry["batches"].append({"batch_size": batch_size, "left_out": str(refusal)})
            continue
        try:
            rounds = rounds_for({_OURS: sampler}, _SECONDS_PER_CASE)
            results = compare_seconds(time_alternately({_OURS: sampler}, rounds, warmup=0), _OURS, batch_size)
        finally:
            sampler.close()
        figures = {key: value for key, value in results[_OURS].items() if key != "ours_is_faster"}
        chain = sampler.chain
        entry["batches"].append(
            {"batch_size": batch_size, "steps": NUM_STEPS, "rounds": rounds, "graph": chain.graph}
            | {"fall_backs": chain.fall_backs, **figures}
        )
        titled = {f"{name} ({chain.graph})": results[_OURS]}
        findings.add("lines", comparison_lines(titled, batch_size)[0].rpartition(",")[0])
    findings.add("engines", entry)
