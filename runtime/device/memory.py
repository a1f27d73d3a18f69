"""Device memory, streams and their waiting: PyCUDA's where it is installed, else the compiled kernels' own.

Whoever allocates, it is in the GPU's primary context, which PyTorch, ONNX Runtime and TensorRT use too.
"""

from __future__ import annotations

import importlib.util
import logging
from types import ModuleType

from commands.errors import DeviceUnavailableError
from runtime.device.driver import driver_facts, require_gpu
from runtime.device.interface import DeviceMemory, too_little_memory
from runtime.kernels_module import import_kernels

_log = logging.getLogger(__name__)


def open_device_memory(ordinal: int = 0) -> DeviceMemory:
    """The memory of one GPU.

    Args:
        ordinal: as CUDA counts, after CUDA_VISIBLE_DEVICES.

    Raises:
        DeviceUnavailableError: no driver, no such GPU, or kernels that were built without CUDA.
    """
    what = "device cuda"
    require_gpu(driver_facts(), what, "run on this machine with `device=cpu`", ordinal)
    kernels = import_kernels()
    if not kernels.has_cuda_kernels():
        raise DeviceUnavailableError(
            f"{what}: the compiled kernels were built without CUDA; put nvcc on the PATH and run `make build`"
        )
    try:
        kernels.cuda_set_device(ordinal)
    except RuntimeError as error:
        raise DeviceUnavailableError(
            f"{what}: {error}; update the NVIDIA driver, or build with an older CUDA"
        ) from error
    if importlib.util.find_spec("pycuda") is not None:
        from runtime.device.pycuda_memory import open_pycuda_memory

        try:
            return open_pycuda_memory(ordinal)
        except (ImportError, RuntimeError) as error:
            _log.warning("PyCUDA is installed and does not work (%s); the compiled kernels allocate instead", error)
    return KernelsMemory(kernels)


class KernelsMemory:
    """A `DeviceMemory` of the CUDA runtime that is linked into the compiled kernels.

    Args:
        kernels: the compiled module, its device chosen.
    """

    name = "CUDA runtime"

    def __init__(self, kernels: ModuleType) -> None:
        self._kernels = kernels
        self.free = kernels.cuda_free
        self.to_device = kernels.cuda_copy_to_device
        self.to_host = kernels.cuda_copy_to_host
        self.make_stream = kernels.cuda_stream_create
        self.free_stream = kernels.cuda_stream_destroy
        self.synchronize = kernels.cuda_stream_synchronize
        self.is_done = kernels.cuda_stream_is_done

    def allocate(self, size_bytes: int) -> int:
        """As `DeviceMemory.allocate`."""
        try:
            return int(self._kernels.cuda_allocate(size_bytes))
        except MemoryError as error:
            raise too_little_memory(size_bytes, self.free_bytes()) from error

    def free_bytes(self) -> int:
        """As `DeviceMemory.free_bytes`."""
        return int(self._kernels.cuda_memory_info()[0])

    def zero(self, address: int, size_bytes: int, stream: int) -> None:
        """As `DeviceMemory.zero`."""
        self._kernels.cuda_fill(address, 0, size_bytes, stream)
