"""The modules that run plans: which one a plan needs, what it must offer, and where it comes from."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from types import ModuleType

from commands.errors import DeviceUnavailableError, reason
from runtime.formats.flavor import RTX

# Everything that is touched, by class; `tests/runtime/engines/` holds it against the real modules.
NAMES: Mapping[str, tuple[str, ...]] = {
    "ILogger": ("log", "Severity"),
    "ILogger.Severity": ("INTERNAL_ERROR", "ERROR", "WARNING"),
    "Runtime": ("deserialize_cuda_engine", "engine_host_code_allowed"),
    "ICudaEngine": (
        "create_execution_context",
        "get_tensor_dtype",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_shape",
        "num_io_tensors",
        "num_optimization_profiles",
    ),
    "IExecutionContext": (
        "execute_async_v3",
        "set_device_memory",
        "set_input_shape",
        "set_optimization_profile_async",
        "set_tensor_address",
        "update_device_memory_size_for_shapes",
    ),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "DataType": ("FLOAT", "HALF", "BF16", "INT64"),
    "TensorIOMode": ("INPUT", "OUTPUT"),
}
RTX_NAMES: Mapping[str, tuple[str, ...]] = {
    "Runtime": ("get_engine_validity",),
    "EngineValidity": ("INVALID",),
    "EngineInvalidityDiagnostics": ("__members__",),
    "ICudaEngine": ("create_runtime_config",),
    "IRuntimeConfig": (
        "create_runtime_cache",
        "cuda_graph_strategy",
        "dynamic_shapes_kernel_specialization_strategy",
        "set_execution_context_allocation_strategy",
        "set_runtime_cache",
    ),
    "IRuntimeCache": ("deserialize", "serialize"),
    "CudaGraphStrategy": ("DISABLED",),
    "DynamicShapesKernelSpecializationStrategy": ("EAGER",),
    "IExecutionContext": ("is_stream_capturable",),
}


OLDEST = (10, 8)
"""Of TensorRT and its lean runtime. Before, setDeviceMemoryV2 can dump core for a plan without weight streaming."""


def names_of(module: str) -> dict[str, tuple[str, ...]]:
    """What is touched of a module, by class."""
    names = dict(NAMES)
    if module == RTX.module:
        for owner, more in RTX_NAMES.items():
            names[owner] = names.get(owner, ()) + more
    return names


def missing_names(module: ModuleType) -> list[str]:
    """What of `names_of` the module lacks, as `IExecutionContext.set_device_memory`."""
    missing = [] if hasattr(module, "__version__") else ["__version__"]
    for owner, names in names_of(module.__name__).items():
        found: object = module
        for part in owner.split("."):
            found = getattr(found, part, None)
        missing += [f"{owner}.{name}" for name in names if not hasattr(found, name)]
    return missing


def import_tensorrt(name: str) -> ModuleType | None:
    """Import one of the modules; None if it is not installed. Only after a driver and a GPU were found.

    Raises:
        DeviceUnavailableError: it is installed and does not load, or is older than what is needed of it.
    """
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return None
        raise DeviceUnavailableError(_broken(name, error)) from error
    except (ImportError, OSError, RuntimeError) as error:  # libraries that are missing or of another driver
        raise DeviceUnavailableError(_broken(name, error)) from error
    missing = missing_names(module)
    if missing:
        raise DeviceUnavailableError(
            f"the module {name!r} {getattr(module, '__version__', '(no version)')} has no {missing[0]}, expected "
            "TensorRT 10.8 or TensorRT-RTX 1.7, or later; install a newer one"
        )
    if name != RTX.module and (10,) <= version_numbers(module.__version__) < OLDEST:
        raise DeviceUnavailableError(
            f"the module {name!r} is of version {module.__version__}, expected 10.8 or later: earlier ones can end the "
            "process when a plan is given memory for its activations (NVIDIA/TensorRT#4302); install a newer one"
        )
    return module


def version_numbers(version: str) -> tuple[int, ...]:
    """`10.13.0.35` as numbers; what follows a number in its place, as in `11.0rc1`, is left out."""
    numbers = []
    for part in version.split("."):
        match = re.match(r"\d+", part)
        if match is None:
            break
        numbers.append(int(match.group()))
    return tuple(numbers)


def _broken(name: str, error: Exception) -> str:
    return f"the module {name!r} is installed and does not load ({reason(error)}); install it again"
