"""What the machine is, and how fast it copies: the ceiling for whatever moves bytes."""

from __future__ import annotations

import importlib
import importlib.metadata
import shutil
import statistics
import subprocess
from typing import Any

from benchmarks.gpu_check.context import StageContext, StageSkippedError
from benchmarks.gpu_check.figures import CACHE_MULTIPLE, gb_per_s
from benchmarks.gpu_check.kernels_build import find_cuda_tool

_QUERY = (
    "name", "driver_version", "pstate", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit",
    "temperature.gpu", "memory.total", "memory.used", "utilization.gpu", "compute_mode", "mig.mode.current",
)  # fmt: skip
_PACKAGES = ("nanobind", "cmake", "ninja", "scikit-build-core", "triton", "diffusers", "nvidia-cudnn-cu13", "pillow")
_ROUNDS, _COPIES_PER_ROUND = 11, 10


def run(context: StageContext) -> None:
    """The stage."""
    context.record("nvidia_smi", nvidia_smi_facts())
    context.record("tools", tool_versions())
    context.record("packages", package_versions())
    torch = import_torch()
    properties = torch.cuda.get_device_properties(0)
    l2_bytes = int(properties.L2_cache_size)
    facts = {
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "num_multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": l2_bytes,
    }
    context.record("torch", facts)
    num_bytes = CACHE_MULTIPLE * l2_bytes
    bandwidth = copy_bandwidth(torch, num_bytes)
    context.record("copy", bandwidth)
    lines = [
        f"copy of {num_bytes / 1e6:.0f} MB from device to device: {bandwidth['gb_per_s']:.0f} GB/s "
        f"({bandwidth['gb_per_s_min']:.0f} to {bandwidth['gb_per_s_max']:.0f}), bytes read and written"
    ]
    context.record("lines", lines)


def import_torch() -> Any:
    """PyTorch, with a GPU that it can use.

    Raises:
        StageSkippedError: it is not installed, built without CUDA, or finds no GPU.
    """
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise StageSkippedError(f"PyTorch is not installed (no module {error.name!r})") from error
    if not torch.backends.cuda.is_built():
        raise StageSkippedError(f"PyTorch {torch.__version__} is built without CUDA")
    if not torch.cuda.is_available():
        raise StageSkippedError(f"PyTorch {torch.__version__} finds no GPU that it can use")
    return torch


def copy_bandwidth(torch: Any, num_bytes: int) -> dict[str, float]:
    """Copy from one buffer of so many bytes to another, timed by events on the GPU."""
    source = torch.randint(-128, 128, (num_bytes,), dtype=torch.int8, device="cuda")
    to = torch.empty_like(source)
    milliseconds = []
    for number in range(_ROUNDS + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(_COPIES_PER_ROUND):
            to.copy_(source)
        end.record()
        end.synchronize()
        if number >= 2:
            milliseconds.append(start.elapsed_time(end) / _COPIES_PER_ROUND)
    return bandwidth_figures(2 * num_bytes, milliseconds)


def bandwidth_figures(num_bytes: int, milliseconds: list[float]) -> dict[str, float]:
    """The median, the least and the greatest bandwidth of several measurements."""
    return {
        "gb_per_s": gb_per_s(num_bytes, statistics.median(milliseconds)),
        "gb_per_s_min": gb_per_s(num_bytes, max(milliseconds)),
        "gb_per_s_max": gb_per_s(num_bytes, min(milliseconds)),
    }


def nvidia_smi_facts() -> dict[str, str] | None:
    """Clocks, limits, temperature and load as nvidia-smi knows them; None where it is missing or fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader", "--id=0"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    values = [value.strip() for value in answer.stdout.strip().split(",")]
    if answer.returncode != 0 or len(values) != len(_QUERY):
        return {"error": (answer.stderr or answer.stdout).strip()[:500]}
    return dict(zip(_QUERY, values, strict=True))


def package_versions() -> dict[str, str]:
    """Of what builds the kernels and of what PyTorch runs with."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not found"
    return versions


def tool_versions() -> dict[str, str]:
    """The last line of what each tool says of its version."""
    versions = {}
    for name in ("nvcc", "cmake", "ninja", "compute-sanitizer"):
        path = find_cuda_tool(name)
        if path is None:
            versions[name] = "not found"
            continue
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
        lines = [line for line in answer.stdout.splitlines() if line.strip()]
        wanted = [line for line in lines if "release" in line.lower() or "version" in line.lower()] or lines
        versions[name] = wanted[0].strip() if wanted else f"exit code {answer.returncode}"
    return versions
