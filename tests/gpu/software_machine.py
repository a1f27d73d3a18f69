"""The device in software in the place of the GPU, the echo network in the place of the U-Net."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from benchmarks.device.gpu_machine import EAGER_PIPELINE, GRAPH_LOOP, PIPELINE, GpuMachine
from benchmarks.device.kernels_build import RECORD, load_kernels
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from tests.gpu.echo_engine import EchoEngine
from tests.runtime.device.software_device import SoftwareMemory, software_device

MEMORY_BYTES = 1 << 25
SHAPE = SampleShape(3, 16, 16)


class SoftwareMachine(GpuMachine):
    """A `GpuMachine` without a GPU: the real kernels, graphs and chains.

    Args:
        work_folder: as everywhere.
        kernels: of a device that is there already; None for a new one that lives as long as the process.
    """

    is_software = True
    torch = None
    compute_capability = "9.0"

    def __init__(self, work_folder: Path, kernels=None) -> None:
        super().__init__(work_folder)
        if (work_folder / RECORD).exists():
            load_kernels(work_folder)  # what the CPU does is done by the kernels that the stage `build` made
        if kernels is None:
            self._device = software_device(str(os.getpid()), pytest.MonkeyPatch())
            kernels = self._device.__enter__()
        self.kernels = kernels
        self.memory = SoftwareMemory(kernels)
        self.memory.resize(MEMORY_BYTES)

    def build(self) -> list[str]:
        """With nvcc, for a GPU that is not here; or, to be quick, take a module that was built before."""
        known = os.environ.get("DDPM_RT_REHEARSAL_KERNELS")
        if known is None:
            return super().build()
        self.work_folder.mkdir(parents=True, exist_ok=True)
        (self.work_folder / RECORD).write_text(json.dumps({"module": known}))
        load_kernels(self.work_folder)
        return [f"{self.compute_capability.replace('.', '')}-real"]

    def engine(self, precision: str, compiled: bool = False) -> EchoEngine:
        engine = EchoEngine(a_process(SHAPE), precision, "int64", self.memory, self.kernels)
        engine.name = f"echo ({precision}{', compiled' if compiled else ''})"
        return engine

    def reference(self):
        return lambda x, t: x

    def peers(self, engine, batch_size: int, num_steps: int, compiled: bool):
        names = (GRAPH_LOOP, PIPELINE) if compiled else (EAGER_PIPELINE,)
        return {name: lambda: lambda: sum(itertools.repeat(1, 1000)) for name in names}

    def forget_memory(self) -> None:
        """Nothing is kept."""


def a_process(shape: SampleShape, learned: bool = False) -> Process:
    """Of 1000 timesteps."""
    schedule = NoiseSchedule.make("linear")
    return Process(shape, schedule, variance_type="learned_range" if learned else "fixed_large")
