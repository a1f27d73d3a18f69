"""The GPU that is here, the kernels that were built for it, and the network that the figures are about.

That is ddpm-cifar10-32 with random weights, by configuration and seed, from a checkpoint folder, as users run it.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.device.findings import SkippedError
from benchmarks.device.kernels_build import build_kernels, forget_build, load_kernels
from runtime.device.driver import driver_facts, require_gpu
from runtime.device.interface import DeviceEngine, DeviceMemory

GRAPH_LOOP = "hand-written PyTorch graph loop, same kernels"
PIPELINE = "diffusers + torch.compile(max-autotune)"
EAGER_PIPELINE = "diffusers, eager"

Sampler = Callable[[], object]


class GpuMachine:
    """What a measurement or a check is given. The device in software of the tests is another one.

    Args:
        work_folder: where the kernels were built, and where the checkpoint is kept.
    """

    is_software = False

    def __init__(self, work_folder: Path) -> None:
        self.work_folder = work_folder
        self._engines: dict[tuple[str, bool], DeviceEngine] = {}

    @functools.cached_property
    def compute_capability(self) -> str:
        """Such as `9.0`. Raises DeviceUnavailableError without a GPU."""
        return require_gpu(driver_facts(), "build", "run it on a machine with one").compute_capability

    def build(self) -> list[str]:
        """Build the kernels for this GPU alone; return the architectures that the module says it has.

        Raises:
            RuntimeError: something that is needed is missing, or the build failed.
        """
        capability = self.compute_capability
        forget_build(self.work_folder)
        build_kernels(self.work_folder, capability)
        architectures: list[str] = load_kernels(self.work_folder).cuda_architectures()
        return architectures

    @functools.cached_property
    def kernels(self) -> ModuleType:
        """The compiled module.

        Raises:
            SkippedError: it was not built.
        """
        return load_kernels(self.work_folder)

    @functools.cached_property
    def memory(self) -> DeviceMemory:
        """Of the GPU, by way of those kernels."""
        if not self.kernels.has_cuda_kernels():  # before `runtime` imports any other
            raise RuntimeError("the kernels were built without CUDA")
        from runtime.device.memory import open_device_memory

        return open_device_memory()

    @functools.cached_property
    def torch(self) -> Any:
        """PyTorch, with a GPU that it can use.

        Raises:
            SkippedError: it is not installed, built without CUDA, or finds no GPU.
        """
        _ = self.memory  # the kernels first: nothing else must load others
        try:
            torch = importlib.import_module("torch")
        except ModuleNotFoundError as error:
            raise SkippedError(f"PyTorch is not installed (no module {error.name!r})") from error
        if not torch.backends.cuda.is_built():
            raise SkippedError(f"PyTorch {torch.__version__} is built without CUDA")
        if not torch.cuda.is_available():
            raise SkippedError(f"PyTorch {torch.__version__} finds no GPU that it can use")
        return torch

    def checkpoint(self) -> Path:
        """A `DDPMPipeline` folder of the network, made where it is not there yet (143 MB).

        Raises:
            SkippedError: PyTorch or diffusers cannot be used here.
        """
        _ = self.torch
        try:
            importlib.import_module("diffusers.pipelines.ddpm")
        except (ImportError, RuntimeError) as error:  # it is missing, or a package that it needs is missing or too old
            raise SkippedError(
                f"diffusers cannot be imported ({error}); docs/gpu-check.md says what to carry"
            ) from error
        from benchmarks.networks import save_cifar10_checkpoint

        folder, done = self.work_folder / "checkpoint", self.work_folder / "checkpoint.json"
        if not done.exists():
            save_cifar10_checkpoint(folder)
            done.write_text(json.dumps({"seed": 0}))
        return folder

    def engine(self, precision: str, compiled: bool = False) -> DeviceEngine:
        """The network on the GPU, not yet verified; the same one when it is asked for again."""
        key = (precision, compiled)
        if key not in self._engines:
            folder = self.checkpoint()
            from runtime.engines.torch_device import TorchDeviceEngine

            self._engines[key] = TorchDeviceEngine(folder, precision, compiled, memory=self.memory)
        return self._engines[key]

    def reference(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """(x, t) → eps in NumPy, in float32 on the CPU, by diffusers' network as it was before anything was folded."""
        folder, torch = self.checkpoint(), self.torch
        from diffusers import UNet2DModel

        unet = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True)

        def predict(x: np.ndarray, t: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return np.asarray(unet(torch.from_numpy(x), torch.from_numpy(t)).sample.numpy())

        return predict

    def peers(
        self, engine: DeviceEngine, batch_size: int, num_steps: int, compiled: bool
    ) -> dict[str, Callable[[], Sampler]]:
        """By name: makes a peer of the engine's chains, a call that samples a batch and waits for it."""
        folder = self.checkpoint()
        from benchmarks.device.torch_loops import DiffusersSampler, GraphLoop

        arguments = (folder, engine.precision, batch_size, num_steps)
        if not compiled:
            return {EAGER_PIPELINE: lambda: DiffusersSampler(*arguments, compiled=False)}
        return {
            GRAPH_LOOP: lambda: GraphLoop(engine, batch_size, num_steps),
            PIPELINE: lambda: DiffusersSampler(*arguments, compiled=True),
        }

    def forget_memory(self) -> None:
        """Let PyTorch give back what chains that are gone have used."""
        self.torch.cuda.empty_cache()
