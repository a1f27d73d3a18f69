"""TensorRT on host memory: modules with the names that are touched and no others, whose plans run a known network.

Every rule of NVIDIA's documentation that the engine must keep is checked where it could be broken: shapes within the
profile before memory is asked for, memory as large as was asked for, addresses that are multiples of 256, one capture
at a time.
"""

from __future__ import annotations

import ctypes
import enum
from types import ModuleType

import numpy as np

from runtime.engines.tensorrt_modules import names_of
from runtime.formats.precision import to_element_type, to_float32
from tests.runtime.engines.host_memory import ADDRESS_UNIT, at_address

CALLS: list[str] = []
"""What was called of any fake module since the list was last cleared."""

WORKSPACE_PER_SAMPLE = 1000


def make_module(
    name: str,
    version: str,
    network,
    io_type="float32",
    t_type="int64",
    profiles=((1, 8, 64),),
    broken=(),
    shape_of_x=None,
) -> ModuleType:
    """A module of this name.

    Args:
        name: `tensorrt`, `tensorrt_lean` or `tensorrt_rtx`.
        version: `__version__`.
        network: a `GaussianNetwork`, which every plan runs.
        io_type, t_type: element types of the plan.
        profiles: (min, opt, max) each.
        broken: what fails, by the name of the function; it logs `<name> fails`.
        shape_of_x: of the plan, instead of the network's.
    """
    module = ModuleType(name)
    module.__version__ = version
    names = names_of(name)
    broken = frozenset(broken)
    sizes = shape_of_x or network.process.sample.chw
    out_sizes = (network.process.prediction_channels, *network.process.sample.chw[1:])
    host_type = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}[io_type]
    given = {each.name: each for each in network.process.conditions}
    input_sizes = {"x": sizes, "t": (), **{each: of.shape for each, of in given.items()}}

    class Strict:
        """Neither read nor written but by the names that are listed."""

        def __getattribute__(self, attribute):
            if not attribute.startswith("_"):
                assert attribute in names[type(self).__name__], f"{type(self).__name__}.{attribute} is not listed"
            return super().__getattribute__(attribute)

        def __setattr__(self, attribute, value):
            if not attribute.startswith("_"):
                assert attribute in names[type(self).__name__], f"{type(self).__name__}.{attribute} is not listed"
            super().__setattr__(attribute, value)

    def fails(function: str, log) -> bool:
        CALLS.append(function)
        if function in broken:
            log.log(module.ILogger.Severity.WARNING, "something else")
            log.log(module.ILogger.Severity.ERROR, f"{function} fails:\n  in test.cpp")
        return function in broken

    class ILogger:
        Severity = enum.Enum("Severity", names["ILogger.Severity"])

        def __init__(self):
            self.initialized = True

        def log(self, severity, msg):
            raise NotImplementedError

    # With the members that are listed, and no others.
    DataType, TensorIOMode, ExecutionContextAllocationStrategy, CudaGraphStrategy, EAGERNESS, EngineValidity = (
        enum.Enum(owner, ("OTHER", *names.get(owner, ())))
        for owner in (
            "DataType",
            "TensorIOMode",
            "ExecutionContextAllocationStrategy",
            "CudaGraphStrategy",
            "DynamicShapesKernelSpecializationStrategy",
            "EngineValidity",
        )
    )

    class EngineInvalidityDiagnostics(enum.IntFlag):
        VERSION_MISMATCH, UNSUPPORTED_CC, OLD_CUDA_DRIVER = 1, 2, 4

    class Runtime(Strict):
        engine_host_code_allowed = False

        def __init__(self, logger):
            assert logger.initialized, "the base class was not initialized"
            self._log = logger
            if fails("Runtime", logger) and name != "tensorrt_lean":  # which returns something that crashes
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def get_engine_validity(self, content):
            if fails("get_engine_validity", self._log):
                return EngineValidity.INVALID, 3
            return EngineValidity.OTHER, 0

        def deserialize_cuda_engine(self, content):
            assert memoryview(content).nbytes, "no bytes"
            return None if fails("deserialize_cuda_engine", self._log) else ICudaEngine(self._log)

    class IRuntimeCache(Strict):
        def __init__(self):
            self._content = b""

        def deserialize(self, content):
            CALLS.append("IRuntimeCache.deserialize")
            self._content = bytes(content)
            return self._content == b"compiled"

        def serialize(self):
            CALLS.append("IRuntimeCache.serialize")
            return bytearray(b"compiled")

    class IRuntimeConfig(Strict):
        cuda_graph_strategy = CudaGraphStrategy.OTHER
        dynamic_shapes_kernel_specialization_strategy = EAGERNESS.OTHER

        def __init__(self):
            self._strategy = ExecutionContextAllocationStrategy.OTHER
            self._cache = None

        def set_execution_context_allocation_strategy(self, strategy):
            self._strategy = strategy

        def create_runtime_cache(self):
            return IRuntimeCache()

        def set_runtime_cache(self, cache):
            self._cache = cache
            return "set_runtime_cache" not in broken

    class ICudaEngine(Strict):
        num_io_tensors = 3 + len(given)
        num_optimization_profiles = len(profiles)

        def __init__(self, log):
            self._log = log

        def get_tensor_name(self, place):
            return (*given, "t", "prediction", "x")[place]

        def get_tensor_mode(self, tensor):
            return TensorIOMode.OUTPUT if tensor == "prediction" else TensorIOMode.INPUT

        def get_tensor_dtype(self, tensor):
            io = {"float32": DataType.FLOAT, "float16": DataType.HALF, "bfloat16": DataType.BF16}[io_type]
            types = {"t": t_type, **{each: of.type for each, of in given.items()}}
            return {"float32": DataType.FLOAT, "int64": DataType.INT64}[types[tensor]] if tensor in types else io

        def get_tensor_shape(self, tensor):
            static = profiles[0][0] == profiles[0][2] and len(profiles) == 1
            batch = profiles[0][0] if static else -1
            return [batch, *(input_sizes | {"prediction": out_sizes})[tensor]]

        def create_runtime_config(self):
            return IRuntimeConfig()

        def create_execution_context(self, how):
            if name == "tensorrt_rtx":
                assert how.cuda_graph_strategy == CudaGraphStrategy.DISABLED
                assert how.dynamic_shapes_kernel_specialization_strategy == EAGERNESS.EAGER
                how = how._strategy
            assert how == ExecutionContextAllocationStrategy.USER_MANAGED
            return None if fails("create_execution_context", self._log) else IExecutionContext(self._log)

    class IExecutionContext(Strict):
        def __init__(self, log):
            self._log, self._profile, self._shapes, self._addresses = log, 0, {}, {}
            self._needed, self._memory = None, None

        def set_optimization_profile_async(self, profile, stream):
            assert stream, "the default stream"
            self._profile = profile
            return not fails("set_optimization_profile_async", self._log)

        def set_input_shape(self, tensor, shape):
            least, _, most = profiles[self._profile]
            assert isinstance(shape, tuple)
            self._shapes[tensor] = shape
            right = least <= shape[0] <= most and shape[1:] == input_sizes[tensor]
            return right and not fails("set_input_shape", self._log)

        def update_device_memory_size_for_shapes(self):
            assert set(self._shapes) == set(input_sizes)
            if fails("update_device_memory_size_for_shapes", self._log):
                return 0
            self._needed = WORKSPACE_PER_SAMPLE * self._shapes["x"][0]
            return self._needed

        def set_device_memory(self, memory, size):
            assert self._needed is not None
            assert size >= self._needed
            assert memory % ADDRESS_UNIT == 0
            self._memory = memory

        def set_tensor_address(self, tensor, address):
            assert address % ADDRESS_UNIT == 0
            assert tensor in (*input_sizes, "prediction")
            self._addresses[tensor] = address
            return not fails("set_tensor_address", self._log)

        def is_stream_capturable(self, stream):
            CALLS.append("is_stream_capturable")
            return "is_stream_capturable" not in broken

        def execute_async_v3(self, stream):
            assert stream, "the default stream"
            if fails("execute_async_v3", self._log):
                return False
            assert self._memory
            batch = self._shapes["x"][0]
            ctypes.memset(self._memory, 0xAB, self._needed)  # its own, to the last byte
            x = at_address(self._addresses["x"], (batch, *sizes), host_type)
            t = at_address(self._addresses["t"], (batch,), t_type)
            out = at_address(self._addresses["prediction"], (batch, *out_sizes), host_type)
            assert np.all((t >= 0) & (t < network.process.schedule.num_train_timesteps)), "outside the tables"
            conditions = [at_address(self._addresses[each], (batch, *of.shape), of.type) for each, of in given.items()]
            out[:] = to_element_type(network(to_float32(x, io_type), t, *conditions), io_type)
            return True

    made = [value for value in locals().values() if isinstance(value, type) and value is not Strict]
    for value in made:
        listed = value.__name__ in names
        if listed and issubclass(value, Strict):
            for attribute in [each for each in vars(value) if not each.startswith("_")]:
                if attribute not in names[value.__name__]:
                    delattr(value, attribute)  # another module's alone
        if listed:
            setattr(module, value.__name__, value)
    return module


def bound(engine, num=2, stream=9):
    """A call on buffers of the engine's memory, and views of them."""
    memory, host_type = engine.memory, {"float32": np.float32, "float16": np.float16}[engine.io_type]
    addresses = [memory.allocate(num * size) for size in (48 * 4, 8, 48 * 4)]
    shapes = (((num, 2, 4, 6), host_type), ((num,), engine.t_type), ((num, 2, 4, 6), host_type))
    views = [at_address(address, *shape) for address, shape in zip(addresses, shapes, strict=True)]
    views[1][:] = range(num)
    return engine.bind_device(*addresses, num, stream), *views
