"""Engines that come from files, each built here from the same checkpoint: ONNX Runtime's CUDA provider and plans.

They need the exporter's libraries; where one is missing, that is the record.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.cifar_network import checkpoint_folder, has_diffusers
from benchmarks.gpu_check.context import StageContext, StageSkippedError
from benchmarks.gpu_check.kernels_build import ROOT
from benchmarks.gpu_check.network_bits import largest_error, reference
from benchmarks.gpu_check.wall_clock import NUM_STEPS, ChainSampler, compare_seconds, comparison_lines, rounds_for
from benchmarks.measurement import time_alternately
from commands.errors import DeviceUnavailableError, VerificationError
from diffusion.errors import InputError

FLAVORS = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
"""`--flavor` of export.to_trt by module."""
PRECISION_FLAGS: dict[str, list[str]] = {"fp16": ["--fp16"], "bf16": ["--bf16"], "fp32": []}
# Relative errors of one prediction: fp16 and bf16 keep 11 and 8 bits of each factor, and 60 layers add to that. TF32,
# which builders use for float32, keeps 11 too.
TOLERANCES = {"fp32": 5e-3, "fp16": 1e-2, "bf16": 5e-2}
BATCH_SIZES = (1, 8, 64)
_SECONDS_PER_CASE = 10.0
_OURS = "ours"


def run_onnx(context: StageContext) -> None:
    """The stage of ONNX Runtime."""
    onnx = exported_onnx(context)
    _ = context.memory
    measure_engine(context, onnx, "onnxruntime, fp32", "fp32")


def run_tensorrt(context: StageContext) -> None:
    """The stage of all TensorRT flavors that are installed."""
    onnx = exported_onnx(context)
    _ = context.memory
    installed = [flag for flag, module in FLAVORS.items() if importlib.util.find_spec(module) is not None]
    if not installed:
        raise StageSkippedError(f"none of {', '.join(FLAVORS.values())} is installed")
    for flavor in installed:
        for precision, flags in PRECISION_FLAGS.items():
            name = f"{flavor}, {precision}"
            plan = context.work_folder / f"unet.{flavor}.{precision}.plan"
            begin = time.monotonic()
            words = ["--onnx", str(onnx), "--flavor", flavor, "--out", str(plan), "--max-batch", "64", *flags]
            refusal = run_command("export.to_trt", words)
            if refusal:
                context.add("engines", {"name": name, "left_out": refusal})
                continue
            context.add("builds", {"name": name, "seconds": round(time.monotonic() - begin, 1)})
            measure_engine(context, plan, name, precision)


def exported_onnx(context: StageContext) -> Path:
    """The network as an ONNX file.

    Raises:
        StageSkippedError: it cannot be exported here.
    """
    if not has_diffusers():
        raise StageSkippedError("diffusers is not installed, which the exporter needs")
    onnx = context.work_folder / "unet.onnx"
    if not onnx.exists():
        checkpoint = checkpoint_folder(context.work_folder)
        refusal = run_command("export.to_onnx", ["--checkpoint", str(checkpoint), "--out", str(onnx)])
        if refusal:
            raise StageSkippedError(f"export.to_onnx: {refusal}")
    return onnx


def run_command(module: str, words: list[str]) -> str:
    """Run one of our commands in a process of its own; its last line if it failed, else nothing."""
    command = [sys.executable, "-m", module, *words]
    print("+", *command, flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout, flush=True)
    lines = done.stdout.strip().splitlines()
    return "" if done.returncode == 0 else f"exit {done.returncode}: {lines[-1] if lines else 'it printed nothing'}"


def measure_engine(context: StageContext, path: Path, name: str, precision: str) -> None:
    """Open an engine as users do, compare its predictions with PyTorch's, and time its chains."""
    from runtime.engines.opening import open_engine

    try:
        engine: Any = open_engine(path, device="cuda", backend="onnxruntime" if path.suffix == ".onnx" else "auto")
    except VerificationError as refusal:
        context.check(f"{name}: verified at its first use", False, str(refusal))
        return
    except (InputError, DeviceUnavailableError, RuntimeError) as refusal:
        context.add("engines", {"name": name, "left_out": str(refusal)})
        return
    error = largest_error(engine, reference(context))
    tolerance = TOLERANCES[precision]
    context.check(f"{name}: predictions within {tolerance:g} of PyTorch's", error <= tolerance, f"{error:.2e}")
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
        context.add("lines", comparison_lines(titled, batch_size)[0].rpartition(",")[0])
    context.add("engines", entry)
