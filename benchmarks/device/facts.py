"""The kernels, built for this GPU, and what the machine is."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import time

from benchmarks.device.findings import Findings
from benchmarks.device.gpu_machine import GpuMachine
from benchmarks.device.kernels_build import find_cuda_tool

_QUERY = (
    "name", "driver_version", "pstate", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit",
    "temperature.gpu", "memory.total", "memory.used", "utilization.gpu", "compute_mode", "mig.mode.current",
)  # fmt: skip
_PACKAGES = (
    "nanobind", "cmake", "ninja", "triton", "diffusers", "nvidia-cudnn-cu13", "pillow", "pytest", "pycuda",
)  # fmt: skip


def build(machine: GpuMachine, findings: Findings) -> None:
    """Build the kernels, load them, and make the first call of the CUDA runtime."""
    begin = time.monotonic()
    architectures = machine.build()
    findings.record("build_seconds", round(time.monotonic() - begin, 1))
    findings.record("cuda_architectures", architectures)
    expected = [f"{machine.compute_capability.replace('.', '')}-real"]
    findings.check("built for this GPU alone", architectures == expected, f"{architectures}, expected {expected}")
    findings.record("isa_levels", machine.kernels.isa_levels())
    # Here it shows whether the driver takes what was built.
    findings.record("device", machine.kernels.cuda_device_facts(0))
    findings.record("memory", machine.memory.name)
    findings.record("nvidia_smi", nvidia_smi_facts())
    findings.record("tools", tool_versions())
    findings.record("packages", package_versions())


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
