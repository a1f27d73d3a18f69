"""The machine that checks run on, as `benchmarks.gpu_check` names it to its processes."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

from benchmarks.device.command import MACHINE, named
from benchmarks.device.gpu_machine import GpuMachine

WORK_FOLDER = os.environ.get("DDPM_RT_GPU_WORK_FOLDER")
STAND_IN = os.environ.get("DDPM_RT_GPU_MACHINE", "")
"""A class that stands for the GPU, in a rehearsal; else empty."""


@functools.cache
def open_machine() -> GpuMachine:
    """The GPU that is here or what stands for it, the same for all of a process.

    Outside of `make gpu-check` the kernels are those that are installed.
    """
    machine: GpuMachine = named(STAND_IN or MACHINE)(Path(WORK_FOLDER or tempfile.mkdtemp(prefix="ddpm-rt-gpu-")))
    if not WORK_FOLDER:
        from runtime.kernels_module import import_kernels

        machine.kernels = import_kernels()
    return machine
