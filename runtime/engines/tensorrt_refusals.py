"""Everything that can be wrong with a plan on this machine, found before its bytes reach a deserializer.

TensorRT's deserializers crash on junk, or on a machine where CUDA does not start. So the order is fixed: the sidecar,
the hash of the plan's bytes, a driver and a GPU, the module, its version, the GPU's compute capability. No TensorRT
module is imported before a GPU was found.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from commands.errors import DeviceUnavailableError
from commands.program import say
from diffusion.errors import InputError
from runtime.device.driver import DriverFacts, Gpu, driver_facts, require_gpu
from runtime.engines.network_contract import check_shapes
from runtime.engines.tensorrt_modules import import_tensorrt, version_numbers
from runtime.formats.plan_description import REBUILD, PlanDescription
from runtime.formats.sidecar import Sidecar, read_hashed, read_sidecar, sidecar_path

PlanSidecar = Sidecar[PlanDescription]


@dataclass(frozen=True, eq=False)
class AcceptedPlan:
    """A plan that may be deserialized here.

    Attributes:
        path: of the plan.
        sidecar: what it says of the plan.
        content: uint8, the very bytes that were hashed.
        module: that is to deserialize them.
        gpu: to run on.
        driver: of that GPU.
    """

    path: Path
    sidecar: PlanSidecar
    content: np.ndarray
    module: ModuleType
    gpu: Gpu
    driver: DriverFacts

    @property
    def plan(self) -> PlanDescription:
        """What the sidecar says of the plan."""
        return self.sidecar.engine

    @property
    def runtime(self) -> str:
        """The module and its version, such as `tensorrt_rtx 1.7.1.116`."""
        return f"{self.module.__name__} {self.module.__version__}"


def accept_plan(path: Path, sidecar: PlanSidecar | None = None) -> AcceptedPlan:
    """Check a plan, its sidecar and this machine; nothing is deserialized.

    Args:
        path: of the plan.
        sidecar: instead of the one beside the file, of an exporter that has yet to verify it.

    Raises:
        InputError: a file that is missing, changed, or built for another version or GPU.
        DeviceUnavailableError: no driver, no GPU, or no module that runs such plans.
    """
    if sidecar is None:
        if not path.exists() and not sidecar_path(path).exists():
            raise InputError(f"{path}: no such engine; make one with `{REBUILD} --out {path}`")
        sidecar = read_sidecar(path, PlanDescription)
    plan = sidecar.engine
    if plan.stripped:
        raise InputError(
            f"{path}: was built without its weights, expected a whole plan; refit it, or build it with `{REBUILD}`"
        )
    check_shapes(path, sidecar.process, plan.tensors.x, plan.tensors.prediction)
    content = read_hashed(path, path, sidecar.sha256, REBUILD)
    driver = driver_facts()
    gpu = require_gpu(driver, str(path), runs_here(path))
    module = _find_module(path, plan)
    check_gpu(path, plan, gpu)
    return AcceptedPlan(path, sidecar, content, module, gpu, driver)


def runs_here(path: Path) -> str:
    """What to do without a GPU: the engine beside the plan that runs on a CPU, or the command that makes one."""
    for suffix, modules, needed in (
        (".onnx", ("onnxruntime", "openvino"), ()),
        (".xml", ("openvino",), (path.with_suffix(".bin"), sidecar_path(path.with_suffix(".xml")))),
    ):
        other = path.with_suffix(suffix)
        if all(file.is_file() for file in (other, *needed)) and any(map(importlib.util.find_spec, modules)):
            return f"give --engine {other}, which runs here"
    return "make an engine that runs here with `python -m export.to_onnx`"


def _find_module(path: Path, plan: PlanDescription) -> ModuleType:
    names = plan.flavor.modules(plan.version_compatible)
    refusals: list[str] = []
    for name in names:
        module = import_tensorrt(name)
        if module is None:
            continue
        refusal = _version_refusal(path, plan, name, module.__version__)
        if not refusal:
            return module
        refusals.append(refusal)
    if refusals:
        raise InputError(refusals[0])
    raise DeviceUnavailableError(
        f"{path}: needs {plan.flavor.title}, and the module {' or '.join(map(repr, names))} is not installed; "
        f"{plan.flavor.pip(plan.builder_version)}"
    )


def _version_refusal(path: Path, plan: PlanDescription, module: str, version: str) -> str:
    """Why this version does not run the plan; empty if it may.

    Within a release the deserializer decides. NVIDIA promises less: a plan runs on the release that built it, and one
    that was built version-compatible on later releases of the same major version.
    """
    built, here = version_numbers(plan.builder_version), version_numbers(version)
    if built[:1] != here[:1]:
        expected = f"major version {'.'.join(map(str, built[:1]))}"
    elif not plan.version_compatible and built[:2] != here[:2]:
        expected = f"release {'.'.join(map(str, built[:2]))}, because it was not built version-compatible"
    elif plan.version_compatible and here < built:
        expected = f"{plan.builder_version} or later"
    else:
        return ""
    return (
        f"{path}: was built by {plan.flavor.title} {plan.builder_version}, and {module} {version} is installed, "
        f"expected {expected}; build it again with `{REBUILD}`, or {plan.flavor.pip(plan.builder_version)}"
    )


def check_gpu(path: Path, plan: PlanDescription, gpu: Gpu) -> None:
    """Raises InputError for a GPU of another compute capability than the plan's; warns of another model."""
    capability = version_numbers(gpu.compute_capability)
    newer_too = plan.hardware_compatibility == "ampere_plus"
    built_for = plan.compute_capabilities
    if gpu.compute_capability not in built_for and not (newer_too and capability >= (8, 0)):
        raise InputError(
            f"{path}: was built for compute capability {', '.join(built_for)}{' and later' if newer_too else ''}, "
            f"but {gpu.name} has {gpu.compute_capability}; build it again with `{REBUILD}` for this GPU"
        )
    if plan.built_on_gpu not in (None, gpu.name):
        say(
            f"warning: {path} was built on {plan.built_on_gpu} and runs on {gpu.name}, of compute capability "
            f"{gpu.compute_capability} too: it may be slower here; `{REBUILD}` makes one for this GPU"
        )
