"""The kernels, built for this GPU, and that they are what they should be."""

from __future__ import annotations

import time

from benchmarks.gpu_check.context import StageContext
from benchmarks.gpu_check.kernels_build import build_kernels, forget_build
from runtime.device.driver import driver_facts, require_gpu


def run(context: StageContext) -> None:
    """The stage."""
    capability = require_gpu(driver_facts(), "build", "run it on a machine with one").compute_capability
    forget_build(context.work_folder)
    begin = time.monotonic()
    module = build_kernels(context.work_folder, capability)
    context.record("build_seconds", round(time.monotonic() - begin, 1))
    context.record("module", module.name)
    kernels = context.kernels
    architectures = kernels.cuda_architectures()
    context.record("cuda_architectures", architectures)
    expected = [f"{capability.replace('.', '')}-real"]
    context.check("built for this GPU alone", architectures == expected, f"{architectures}, expected {expected}")
    context.record("isa_levels", kernels.isa_levels())
    # The first call of the CUDA runtime: here it shows whether the driver takes what was built.
    context.record("device", kernels.cuda_device_facts(0))
    context.record("memory", context.memory.name)
