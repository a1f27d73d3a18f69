"""The network that the GPU's figures are about: ddpm-cifar10-32 with random weights, by configuration and seed.

With diffusers the chain runs it as users do, from a checkpoint folder by `runtime.engines.torch_device`. Without, it
is the same architecture in PyTorch alone, and the report says so.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.context import StageContext
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.device.interface import DeviceEngine, DeviceMemory
from runtime.formats.precision import PRECISIONS

PROCESS = Process(SampleShape(3, 32, 32), NoiseSchedule.make("linear"), variance_type="fixed_large")


@functools.cache
def has_diffusers() -> bool:
    """Whether diffusers is installed and can be imported."""
    if importlib.util.find_spec("diffusers") is None:
        return False
    try:
        importlib.import_module("diffusers.pipelines.ddpm")
    except (ImportError, RuntimeError) as error:  # a package that it needs is missing, or too old
        print(f"diffusers is installed and cannot be imported: {error}", flush=True)
        return False
    return True


def checkpoint_folder(work_folder: Path) -> Path:
    """A `DDPMPipeline` folder of the network, made where it is not there yet (143 MB)."""
    from benchmarks.networks import save_cifar10_checkpoint

    folder, done = work_folder / "checkpoint", work_folder / "checkpoint.json"
    if not done.exists():
        save_cifar10_checkpoint(folder)
        done.write_text(json.dumps({"seed": 0}))
    return folder


def device_engine(context: StageContext, precision: str, compiled: bool = False) -> DeviceEngine:
    """The network on the GPU; its name says which of the two it is."""
    memory = context.memory  # the kernels first: nothing else must load others
    if has_diffusers():
        from runtime.engines.torch_device import TorchDeviceEngine

        return TorchDeviceEngine(checkpoint_folder(context.work_folder), precision, compiled, memory=memory)
    return plain_engine(memory, precision, compiled)


def plain_engine(memory: DeviceMemory, precision: str, compiled: bool = False, device: str = "cuda") -> DeviceEngine:
    """The same architecture without diffusers, its time path evaluated beforehand too."""
    from benchmarks.gpu_check.module_engine import TYPES, ModuleEngine
    from benchmarks.gpu_check.plain_unet import random_plain_unet

    network: Any = random_plain_unet().fold_time(PROCESS.schedule.num_train_timesteps)
    io_type = PRECISIONS[precision].element_type.name
    network = network.to(device, TYPES[io_type])
    if io_type != "float32":
        import torch

        network = network.to(memory_format=torch.channels_last)
    name = f"plain PyTorch U-Net ({precision}{', compiled' if compiled else ''})"
    return ModuleEngine(network, PROCESS, io_type, memory, name, compiled, device)
