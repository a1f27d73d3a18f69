"""TensorRT, its lean runtime and TensorRT-RTX: plans of `export.to_trt`, run on the chain's own device buffers."""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from commands.errors import DeviceUnavailableError
from commands.program import say
from diffusion.errors import InputError
from diffusion.process import Process
from runtime.device.interface import DeviceEngine, DeviceMemory
from runtime.engines.cache_folder import keep, read_kept
from runtime.engines.tensorrt_call import TensorRtCall, TensorRtError
from runtime.engines.tensorrt_modules import Log, collecting_log, collector_paused, last_words
from runtime.engines.tensorrt_refusals import AcceptedPlan, accept_plan
from runtime.engines.verification import ensure_verified
from runtime.formats.flavor import RTX
from runtime.formats.place import Place
from runtime.formats.plan_description import REBUILD
from runtime.formats.precision import ELEMENT_TYPES
from runtime.formats.tensor_spec import TensorSpec
from runtime.process_flags import ProcessFlags

_KERNELS = "rtx-kernels"
# Of every address, by the documentation of setTensorAddress. TensorRT does not check it.
_ALIGNMENT = 256


def open_plan(path: Path, flags: ProcessFlags | None = None) -> TensorRtEngine:
    """Open a plan, and verify it if it has not been verified on this machine.

    Args:
        path: `unet.plan`, with its sidecar and its reference predictions beside it.
        flags: preferences for variance and clip.

    Raises:
        InputError, DeviceUnavailableError: as `accept_plan`; or TensorRT does not take the plan.
        VerificationError: it differs from its reference on this machine.
    """
    accepted = accept_plan(path)
    engine = TensorRtEngine(accepted, flags)
    exported_at = verified_at(accepted)
    ensure_verified(engine, path, accepted.sidecar, engine.place, exported_at, accepted.plan.fitting_batch)
    return engine


def verified_at(accepted: AcceptedPlan) -> Place | None:
    """Where the exporter ran the plan; None if it had no GPU."""
    plan = accepted.plan
    if not accepted.sidecar.verification.executed or plan.built_on_gpu is None:
        return None
    return Place(plan.built_on_gpu, str(plan.built_on_driver), f"{plan.flavor.module} {plan.builder_version}")


@dataclass(frozen=True, eq=False)
class _Prepared:
    """An execution context with its shapes, and what it wants before it can run.

    Attributes:
        context: without addresses and memory.
        workspace_bytes: of its activations.
        kept: what must live as long as the context.
        after_first: to be called after its first enqueue.
    """

    context: Any
    workspace_bytes: int
    kept: object = None
    after_first: Callable[[], None] | None = None


class TensorRtEngine(DeviceEngine):
    """A `runtime.device.interface.DeviceEngine`, and a `runtime.engines.interface.Engine` by copying.

    Inputs and outputs are passed by address, activations lie in memory of ours, and nothing waits for the GPU except
    when a context is made. Each bound call has an execution context of its own.

    Args:
        accepted: of `accept_plan`.
        flags: preferences for variance and clip.
        memory: of the GPU that the plan was accepted for; None to open it.

    Raises:
        InputError: TensorRT does not take the plan, or the plan is not what its sidecar says.
        DeviceUnavailableError: TensorRT does not start.
    """

    path: Path

    @collector_paused()
    def __init__(
        self, accepted: AcceptedPlan, flags: ProcessFlags | None = None, memory: DeviceMemory | None = None
    ) -> None:
        plan, module = accepted.plan, accepted.module
        self.path, self._plan, self._module, self._gpu = accepted.path, plan, module, accepted.gpu
        self._tensors = plan.tensors
        self._is_rtx = plan.flavor is RTX
        self.process: Process = (flags or ProcessFlags()).applied_to(accepted.sidecar.process, str(accepted.path))
        self.sha256 = accepted.sidecar.sha256
        self.precision = plan.precision
        self.io_type, self.t_type = plan.tensors.x.element_type, plan.tensors.t.element_type
        self.name = f"{plan.flavor.title} {module.__version__} ({plan.precision}, {accepted.gpu.name})"
        self.place = Place(accepted.gpu.name, str(accepted.driver.version), accepted.runtime)
        # First, because it takes the primary context, which TensorRT then finds.
        if memory is None:
            from runtime.device.memory import open_device_memory

            memory = open_device_memory(accepted.gpu.ordinal)
        self.memory: DeviceMemory = memory
        self._log: Log = collecting_log(module)
        self._runtime = self._start()
        self._engine = self._deserialize(accepted.content)
        self._check_tensors()
        self._spare: dict[int, _Prepared] = {}
        self._preparing = threading.Lock()  # contexts are made on one stream, and read from one log

    def batch_range(self) -> tuple[int, int | None]:
        """As `DeviceEngine.batch_range`; between two profiles there may be batches that neither takes."""
        return self._plan.batch_range()

    def check_batch(self, batch_size: int) -> None:
        """Raises InputError for a batch that no profile takes."""
        self._plan.profile_for(batch_size, self.path)

    def call_bytes(self, batch_size: int) -> int:
        """As `DeviceEngine.call_bytes`: activations at this batch. Raises InputError for one that no profile takes."""
        with self._preparing:
            if batch_size not in self._spare:
                self._spare[batch_size] = self._prepare(batch_size)
            return self._spare[batch_size].workspace_bytes

    def bind_device(
        self, x: int, t: int, prediction: int, batch_size: int, stream: int, *conditions: int
    ) -> TensorRtCall:
        """As `DeviceEngine.bind_device`."""
        with self._preparing:
            prepared = self._spare.pop(batch_size, None) or self._prepare(batch_size)
        what = f"{self.path}, a batch of {batch_size}"
        size = prepared.workspace_bytes
        workspace = self.memory.allocate(size) if size else 0
        call = TensorRtCall(
            what, prepared.context, self._log, self.memory, workspace, self._is_rtx, prepared.kept, prepared.after_first
        )
        prepared.context.set_device_memory(workspace, size)
        tensors = self._tensors
        specs = (tensors.x, tensors.t, tensors.prediction, *tensors.conditions)
        for spec, address in zip(specs, (x, t, prediction, *conditions), strict=True):
            if address % _ALIGNMENT:
                raise ValueError(f"{spec.name} lies at {address:#x}, expected a multiple of {_ALIGNMENT}")
            if not prepared.context.set_tensor_address(spec.name, address):
                raise TensorRtError(f"{what}: TensorRT refused the address of {spec.name} ({last_words(self._log)})")
        return call

    def _start(self) -> Any:
        title = self._plan.flavor.title
        try:
            runtime = self._module.Runtime(self._log)
        except Exception as error:  # pybind11 raises what the binding's constructor leads to
            raise DeviceUnavailableError(f"{title} does not start ({error}; {last_words(self._log)})") from error
        if self._log.errors:
            # Where CUDA does not start, the lean runtime logs that and returns an object that crashes the process when
            # it is used, and when it is deleted: so it never is.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(runtime))
            raise DeviceUnavailableError(f"{title} does not start ({last_words(self._log)}); update the NVIDIA driver")
        if self._plan.version_compatible:
            # Such a plan brings code for the host along. It is trusted as every plan is, which brings code for the GPU.
            runtime.engine_host_code_allowed = True
        return runtime

    def _deserialize(self, content: np.ndarray) -> Any:
        if self._is_rtx:
            validity, diagnostics = self._runtime.get_engine_validity(content)
            if validity == self._module.EngineValidity.INVALID:
                reasons = [
                    name
                    for name, member in self._module.EngineInvalidityDiagnostics.__members__.items()
                    if int(diagnostics) & int(member)
                ]
                raise self._refused(", ".join(reasons) or "invalid here")
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise self._refused("its deserializer returns None")
        return engine

    def _refused(self, reason: str) -> InputError:
        plan, path = self._plan, self.path
        return InputError(
            f"{path}: {plan.flavor.title} {self._module.__version__} on {self._gpu.name} does not take this plan, "
            f"built by {plan.builder_version} ({reason}: {last_words(self._log)}); build it again with `{REBUILD}`"
        )

    def _check_tensors(self) -> None:
        engine, modes, tensors = self._engine, self._module.TensorIOMode, self._tensors
        names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        inputs = (tensors.x, tensors.t, *tensors.conditions)
        described = [(each.name, each.type, tuple(each.shape)) for each in self.process.conditions]
        found_conditions = [(each.name, each.element_type, each.shape[1:]) for each in tensors.conditions]
        if found_conditions != described:
            raise self._contradiction(f"conditions {found_conditions}", f"{described}")
        for spec, mode in (*((each, modes.INPUT) for each in inputs), (tensors.prediction, modes.OUTPUT)):
            if spec.name not in names or engine.get_tensor_mode(spec.name) != mode:
                raise self._contradiction(f"tensors {names}", f"{spec.name} among them")
            self._check_tensor(spec)
        if len(names) != len(inputs) + 1 or engine.num_optimization_profiles != len(self._plan.profiles):
            found = f"{len(names)} tensors and {engine.num_optimization_profiles} profiles"
            raise self._contradiction(found, f"{len(inputs) + 1} and {len(self._plan.profiles)}")

    def _check_tensor(self, spec: TensorSpec) -> None:
        found_type, expected_type = (
            self._engine.get_tensor_dtype(spec.name),
            getattr(self._module.DataType, ELEMENT_TYPES[spec.element_type].tensorrt),
        )
        found = tuple(self._engine.get_tensor_shape(spec.name))
        batches = (-1, self._plan.profiles[0].max)  # a plan of one batch may have it fixed
        if found_type != expected_type or found[1:] != spec.shape[1:] or found[:1] not in [(n,) for n in batches]:
            raise self._contradiction(
                f"{spec.name} as {found_type} {list(found)}", f"{spec.element_type} {list(spec.shape)}"
            )

    def _contradiction(self, found: str, expected: str) -> InputError:
        return InputError(
            f"{self.path}: holds {found}, but its sidecar says {expected}; build it again with `{REBUILD}`"
        )

    @collector_paused()
    def _prepare(self, batch_size: int) -> _Prepared:
        profile = self._plan.profile_for(batch_size, self.path)
        what = f"{self.path}, a batch of {batch_size}"
        self._log.errors.clear()
        strategy = self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._is_rtx:
            config, cache, after_first = self._rtx_config(batch_size, strategy)
            context, kept = self._engine.create_execution_context(config), (config, cache)
        else:
            context, kept, after_first = self._engine.create_execution_context(strategy), None, None
        if context is None:
            raise TensorRtError(f"{what}: TensorRT made no execution context ({last_words(self._log)})")
        if profile:  # a new context has profile 0
            if not context.set_optimization_profile_async(profile, self.own_stream):
                raise TensorRtError(f"{what}: TensorRT refused profile {profile} ({last_words(self._log)})")
            self.memory.synchronize(self.own_stream)  # the calls run on other streams
        for name, shape in (
            (self._tensors.x.name, (batch_size, *self.process.sample.chw)),
            (self._tensors.t.name, (batch_size,)),
            *((each.name, (batch_size, *each.shape)) for each in self.process.conditions),
        ):
            if not context.set_input_shape(name, shape):
                raise TensorRtError(f"{what}: TensorRT refused {name} {list(shape)} ({last_words(self._log)})")
        workspace_bytes = int(context.update_device_memory_size_for_shapes())
        if workspace_bytes == 0 and self._log.errors:  # 0 is what it returns on an error, too
            raise TensorRtError(f"{what}: TensorRT could not size its activations ({last_words(self._log)})")
        return _Prepared(context, workspace_bytes, kept, after_first)

    def _rtx_config(self, batch_size: int, strategy: Any) -> tuple[Any, Any, Callable[[], None] | None]:
        """A context's configuration, its cache of compiled kernels, and what keeps that cache, if it is new.

        TensorRT-RTX compiles its kernels for the GPU when it first runs. Compiled lazily, they would change under a
        captured graph; and its own graphs would hide the launches from ours.
        """
        module = self._module
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.cuda_graph_strategy = module.CudaGraphStrategy.DISABLED
        config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
        cache = config.create_runtime_cache()
        key = json.dumps([self.sha256, batch_size, self.place.processor, self.place.driver, self.place.runtime])
        content = read_kept(_KERNELS, key)
        loaded = content is not None and cache.deserialize(content)
        self._log.errors.clear()  # an outdated cache is no error of the plan's
        if not config.set_runtime_cache(cache):
            say(f"{self.path}: TensorRT-RTX takes no cache of kernels ({last_words(self._log)}); it compiles anew")

        def keep_kernels() -> None:
            serialized = cache.serialize()
            if serialized is not None:
                keep(_KERNELS, key, bytes(serialized))

        return config, cache, None if loaded else keep_kernels
