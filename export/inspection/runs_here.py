"""On what a network runs on this machine: each backend that takes it, and what is missing where it does not."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from commands.errors import DeviceUnavailableError
from diffusion.errors import InputError
from runtime.device.driver import driver_facts
from runtime.engines.onnx_opening import choose_backend
from runtime.formats.plan_description import PlanDescription


@dataclass(frozen=True)
class RunsOn:
    """A backend on a device, and whether it runs the network here.

    Attributes:
        backend: the library and the device.
        missing: what it lacks here; empty if nothing is known to.
    """

    backend: str
    missing: str = ""


def checkpoint_runs_here(can_sample: bool = True) -> list[RunsOn]:
    """PyTorch; a checkpoint that is no folder of diffusers is exported with it, and not sampled."""
    lacking = _lacking("torch", "diffusers")
    purpose = "" if can_sample else " (to export it)"
    places = [RunsOn(f"PyTorch on the CPU{purpose}", lacking)]
    return [*places, RunsOn("PyTorch on a GPU", lacking or _no_gpu_for_torch())] if can_sample else places


def onnx_runs_here(precision: str) -> list[RunsOn]:
    """ONNX Runtime and OpenVINO.

    Args:
        precision: of the file's arithmetic, or what it says of one that is none of ours.
    """
    on_cpu = RunsOn("ONNX Runtime on the CPU", _refusal(lambda: choose_backend("onnxruntime", "cpu", precision)))
    if precision == "bf16" and not on_cpu.missing:
        on_cpu = RunsOn(on_cpu.backend, "has no bf16 convolutions there")
    openvino = RunsOn("OpenVINO on the CPU", _refusal(lambda: choose_backend("openvino", "cpu", precision)))
    if precision in ("fp16", "bf16") and not openvino.missing:
        openvino = RunsOn(openvino.backend, f"does not run {precision} files as they are")
    return [on_cpu, openvino, RunsOn("ONNX Runtime on a GPU", _lacking("onnxruntime") or driver_facts().missing)]


def openvino_runs_here(precision: str) -> list[RunsOn]:
    """OpenVINO, in bf16 where the CPU has it."""
    missing = _lacking("openvino")
    if not missing:
        import openvino

        from runtime.engines.openvino_cpu import check_precision

        missing = _refusal(lambda: check_precision(openvino.Core(), precision, "it"))
    return [RunsOn("OpenVINO on the CPU", missing)]


def plan_runs_here(plan: PlanDescription) -> list[RunsOn]:
    """TensorRT, on a GPU of a compute capability that the plan was built for."""
    from runtime.engines.tensorrt_refusals import check_gpu

    facts = driver_facts()
    names = plan.flavor.modules(plan.version_compatible)
    missing = facts.missing
    if not missing and not any(importlib.util.find_spec(name) for name in names):
        missing = f"the module {names[0]} is not installed; {plan.flavor.pip(plan.builder_version)}"
    if not missing:
        missing = _refusal(lambda: check_gpu(Path("it"), plan, facts.gpus[0]))
    return [RunsOn(f"{plan.flavor.title} on a GPU", missing)]


def _lacking(*modules: str) -> str:
    names = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{' and '.join(names)} not installed" if names else ""


def _no_gpu_for_torch() -> str:
    import torch

    if not torch.backends.cuda.is_built():
        return f"PyTorch {torch.__version__} is built without CUDA"
    return driver_facts().missing


def _refusal(check: Callable[[], object]) -> str:
    try:
        check()
    except (InputError, DeviceUnavailableError) as error:
        return str(error)
    return ""
