"""The modules that run plans: which one a plan needs, what it must offer, where it comes from, and its log.

TensorRT returns None or False and says why only in its log. It calls that log, which is Python, while it holds a lock
of its own. A garbage collection that begins there and finds another builder or runtime, left over in the traceback of
an error, ends it; that waits for the same lock, and so for ever. So the collector is paused around calls that may log.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import re
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Protocol

from commands.errors import DeviceUnavailableError, reason
from commands.program import say
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


_MAX_LINES = 50
_MAX_CHARACTERS = 600


class Log(Protocol):
    """A logger of a TensorRT module that collects instead of printing."""

    errors: deque[str]
    """The latest errors, oldest first."""

    warnings: deque[str]
    """The latest warnings, oldest first."""

    @property
    def last(self) -> str:
        """The last error, or an empty text."""
        ...


def collecting_log(module: ModuleType, print_as: str | None = None) -> Any:
    """A `Log` that the module's `Runtime` and `Builder` take; it must live as long as whatever was made with it.

    Args:
        module: `tensorrt`, `tensorrt_lean` or `tensorrt_rtx`; each wants a logger of its own base class.
        print_as: print everything too, with this before each line; None to print nothing.
    """
    base: Any = module.ILogger

    class CollectingLog(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.errors: deque[str] = deque(maxlen=_MAX_LINES)
            self.warnings: deque[str] = deque(maxlen=_MAX_LINES)

        @property
        def last(self) -> str:
            return self.errors[-1] if self.errors else ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (base.Severity.INTERNAL_ERROR, base.Severity.ERROR):
                self.errors.append(msg)
            elif severity == base.Severity.WARNING:
                self.warnings.append(msg)
            if print_as is not None:
                say(f"{print_as}: {getattr(severity, 'name', severity)}: {msg}")

    return CollectingLog()


def last_words(log: Log) -> str:
    """The errors since the last call on one line, or the warnings where there are none; both are cleared."""
    lines = list(log.errors) or list(log.warnings)
    log.errors.clear()
    log.warnings.clear()
    text = "; ".join(" ".join(line.split()) for line in lines)
    if len(text) > _MAX_CHARACTERS:
        text = text[:_MAX_CHARACTERS] + "…"
    return text or "its log is empty"


_pause_lock = threading.Lock()
_num_pauses = 0
_collector_was_enabled = False


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python's collector from running within; a `with` block, or as a decorator a whole function.

    It is the process's, so it comes back when the last thread is out.
    """
    global _num_pauses, _collector_was_enabled
    with _pause_lock:
        if _num_pauses == 0:
            _collector_was_enabled = gc.isenabled()
            gc.disable()
        _num_pauses += 1
    try:
        yield
    finally:
        with _pause_lock:
            _num_pauses -= 1
            if _num_pauses == 0 and _collector_was_enabled:
                gc.enable()
