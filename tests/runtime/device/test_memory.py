"""Device memory behind its protocol: PyCUDA's context pushed and popped, CUDA's errors turned into ours."""

import sys
import types

import numpy as np
import pytest

from commands.errors import DeviceUnavailableError
from diffusion.errors import InputError
from runtime.device import memory as memory_module
from runtime.device.driver import DriverFacts, Gpu
from runtime.device.memory import KernelsMemory, open_device_memory

GPU = Gpu(0, "NVIDIA H200", "9.0", 150 << 30, 132)


class FakeKernels:
    """Just what `KernelsMemory` asks of the compiled module."""

    def __init__(self, **changes):
        self.calls = []
        self.cuda = True
        self.__dict__.update(changes)

    def __getattr__(self, name):
        """What is passed on as it is."""
        if not name.startswith("cuda_"):
            raise AttributeError(name)
        return lambda *arguments: self.calls.append((name, *arguments))

    def has_cuda_kernels(self):
        return self.cuda

    def cuda_set_device(self, ordinal):
        self.calls.append(("set_device", ordinal))

    def cuda_allocate(self, size_bytes):
        if size_bytes > 1000:
            raise MemoryError("cudaMalloc failed: out of memory (cudaErrorMemoryAllocation)")
        return 0x7F00

    def cuda_memory_info(self):
        return 900, 2000


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU, as far as the driver's facts go, and without PyCUDA."""
    kernels = FakeKernels()
    monkeypatch.setattr(memory_module, "driver_facts", lambda: DriverFacts("580.1", "13.0", (GPU,), ""))
    monkeypatch.setattr(memory_module, "import_kernels", lambda: kernels)
    monkeypatch.setattr(memory_module.importlib.util, "find_spec", lambda name: None)
    return kernels


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(memory_module, "driver_facts", lambda: DriverFacts(None, None, (), "no NVIDIA driver"))
    with pytest.raises(DeviceUnavailableError, match="no NVIDIA driver; run on this machine with `device=cpu`"):
        open_device_memory()


def test_the_kernels_allocate_where_there_is_no_pycuda(machine):
    memory = open_device_memory()
    assert isinstance(memory, KernelsMemory)
    assert machine.calls == [("set_device", 0)]
    assert memory.allocate(10) == 0x7F00
    assert memory.free_bytes() == 900
    with pytest.raises(InputError, match=r"0\.0 MiB are needed and 0\.0 MiB are free; use a smaller `batch_size`"):
        memory.allocate(2000)


def test_kernels_without_cuda_and_drivers_that_are_too_old(machine):
    machine.cuda = False
    with pytest.raises(DeviceUnavailableError, match="built without CUDA; put nvcc on the PATH and run `make build`"):
        open_device_memory()
    machine.cuda = True

    def too_old(ordinal):
        raise RuntimeError("cudaSetDevice failed: driver version is insufficient (cudaErrorInsufficientDriver)")

    machine.cuda_set_device = too_old
    with pytest.raises(DeviceUnavailableError, match="insufficient .*; update the NVIDIA driver"):
        open_device_memory()


def fake_pycuda():
    """pycuda.driver as PyCUDA 2025 has it, on the host; it keeps count of the contexts that are current."""
    cuda = types.ModuleType("pycuda.driver")
    cuda.depth, cuda.deepest, cuda.memory = 0, 0, {}

    class Error(Exception):  # PyCUDA's are no RuntimeError
        pass

    class MemoryError(Error):
        pass

    class LogicError(Error):
        pass

    class Context:
        def push(self):
            cuda.depth += 1
            cuda.deepest = max(cuda.deepest, cuda.depth)

        @staticmethod
        def pop():
            cuda.depth -= 1

    class Device:
        def __init__(self, ordinal):
            self.ordinal = ordinal

        def retain_primary_context(self):
            return Context()

    class Allocation:
        def __init__(self, size):
            self.size = size
            cuda.memory[id(self)] = bytearray(size)

        def __int__(self):
            return id(self)

        def free(self):
            assert cuda.depth == 1
            del cuda.memory[id(self)]

    class Stream:
        def __init__(self, flags):
            assert flags == 1
            self.handle, self.waited = id(self), 0

        def synchronize(self):
            assert cuda.depth == 1
            self.waited += 1

        def is_done(self):
            return self.waited > 0

    def mem_alloc(size):
        assert cuda.depth == 1
        if size > 1000:
            raise MemoryError("cuMemAlloc failed: out of memory")
        return Allocation(size)

    def memcpy_htod_async(to, array, stream):
        assert cuda.depth == 1
        assert isinstance(stream, Stream)
        cuda.memory[to][: array.nbytes] = array.tobytes()

    def memcpy_dtoh_async(array, address, stream):
        if address not in cuda.memory:
            raise LogicError("cuMemcpyDtoHAsync failed: invalid argument")
        array.reshape(-1).view(np.uint8)[:] = np.frombuffer(cuda.memory[address], np.uint8)[: array.nbytes]

    def memset_d8_async(to, value, size, stream):
        cuda.memory[to][:size] = bytes([value]) * size

    cuda.init = lambda: None
    cuda.mem_get_info = lambda: (700, 2000)
    for each in (Error, MemoryError, LogicError, Context, Device, Stream):
        setattr(cuda, each.__name__, each)
    for each in (mem_alloc, memcpy_htod_async, memcpy_dtoh_async, memset_d8_async):
        setattr(cuda, each.__name__, each)
    return cuda


@pytest.fixture
def pycuda(machine, monkeypatch):
    cuda = fake_pycuda()
    package = types.ModuleType("pycuda")
    package.driver = cuda
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", cuda)
    monkeypatch.delitem(sys.modules, "runtime.device.pycuda_memory", raising=False)
    monkeypatch.setattr(memory_module.importlib.util, "find_spec", lambda name: object())
    yield cuda
    sys.modules.pop("runtime.device.pycuda_memory", None)


def test_pycuda_serves_the_same_protocol_and_leaves_no_context_behind(pycuda):
    memory = open_device_memory()
    assert memory.name == "PyCUDA"
    stream, address = memory.make_stream(), memory.allocate(16)
    sent = np.arange(4, dtype=np.float32)
    found = np.zeros_like(sent)
    memory.zero(address, 16, stream)
    memory.to_host(found, address, stream)
    assert not found.any()
    memory.to_device(address, sent, stream)
    memory.to_host(found, address, stream)
    np.testing.assert_array_equal(found, sent)
    memory.synchronize(stream)
    assert memory.is_done(stream)
    assert memory.free_bytes() == 700
    memory.free(address)
    memory.free_stream(stream)
    assert not pycuda.memory
    assert (pycuda.depth, pycuda.deepest) == (0, 1)


def test_pycudas_errors_become_ours(pycuda):
    memory = open_device_memory()
    stream = memory.make_stream()
    with pytest.raises(InputError, match="use a smaller `batch_size`"):
        memory.allocate(5000)
    with pytest.raises(RuntimeError, match="cuMemcpyDtoHAsync failed: invalid argument"):
        memory.to_host(np.zeros(1, np.float32), 12345, stream)
    assert pycuda.depth == 0


def test_a_pycuda_that_does_not_work_is_said_and_not_used(pycuda, caplog):
    def init():
        raise pycuda.Error("cuInit failed: unknown error")

    pycuda.init = init
    assert isinstance(open_device_memory(), KernelsMemory)
    assert "PyCUDA is installed and does not work (cuInit failed: unknown error)" in caplog.text
