"""How to measure: candidates by turns, with the machine, versions, commit and command of every figure."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from commands.program import Report
from commands.whole_files import write_whole_text

_PACKAGES = ("numpy", "torch", "diffusers", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pycuda")
_ROOT = Path(__file__).resolve().parents[1]


def time_alternately(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Run each candidate once per round; seconds of every run, by name.

    Args:
        candidates: what to run; each call is one measurement.
        rounds: measurements of each.
        warmup: runs of each before the first measurement.
        clock: `time.process_time` for CPU seconds of all threads, which other work on the machine adds little to.
    """
    for _ in range(warmup):
        for run in candidates.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            begin = clock()
            run()
            seconds[name].append(clock() - begin)
    return seconds


def medians_ms(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each candidate, in milliseconds."""
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def measurement_facts(prog: str, argv: Sequence[str] | None) -> dict[str, Any]:
    """The head of a result file: its format, the command, the commit and the machine."""
    arguments = sys.argv[1:] if argv is None else argv
    return {
        "format": 1,
        "command": " ".join(["python", "-m", prog, *arguments]),
        "commit": commit(),
        "machine": machine_facts(),
    }


def write_report(report: Report, out: Path | None) -> list[str]:
    """Write the report, if it is to be written; return the lines that say where it is.

    Raises:
        InputError: the file cannot be written.
    """
    if out is None:
        return []
    write_whole_text(out, json.dumps(report, indent=1) + "\n")
    return [str(out)]


def machine_facts() -> dict[str, Any]:
    """CPU, memory, load, operating system, Python, package versions, and the NVIDIA GPUs if there are any."""
    return {
        "cpu": cpu_model(),
        "cpu_count": cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "gpus": gpu_names(),
    }


def cpu_model() -> str:
    """The CPU's name as the system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_count() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that numbers may depend on."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def gpu_names() -> list[str]:
    """Names and drivers of the NVIDIA GPUs, as nvidia-smi prints them; empty where it is missing or finds none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.strip().splitlines() if answer.returncode == 0 else []


def commit() -> str | None:
    """The checkout's commit, with "+changes" if files differ from it; None outside a checkout."""
    git = shutil.which("git")
    if git is None or not (_ROOT / ".git").exists():  # installed inside somebody else's repository
        return None
    head = subprocess.run([git, "rev-parse", "HEAD"], cwd=_ROOT, capture_output=True, text=True, check=False)
    if head.returncode != 0:
        return None
    status = subprocess.run([git, "status", "--porcelain"], cwd=_ROOT, capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")
