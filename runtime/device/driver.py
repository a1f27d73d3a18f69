"""Which NVIDIA driver and which GPUs are here, asked of the driver itself. No CUDA context is taken."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

from commands.errors import DeviceUnavailableError

LIBRARY = "libcuda.so.1"
# The kernel module tells its version where libcuda tells only the CUDA version that it implements.
_KERNEL_MODULE = Path("/sys/module/nvidia/version")
# CUdevice_attribute of the CUDA driver API.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _MULTIPROCESSORS = 75, 76, 16
_NAME_BYTES = 256
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        ordinal: as CUDA counts, after CUDA_VISIBLE_DEVICES.
        name: such as `NVIDIA H200`.
        compute_capability: such as `9.0`.
        memory_bytes: in all, not what is free.
        num_multiprocessors: streaming multiprocessors.
    """

    ordinal: int
    name: str
    compute_capability: str
    memory_bytes: int
    num_multiprocessors: int


@dataclass(frozen=True)
class DriverFacts:
    """What there is.

    Attributes:
        version: of the driver, such as `580.95.05`; `CUDA 13.0` where only that can be known; None without a driver.
        cuda_version: the newest CUDA that the driver implements, such as `13.0`; None without a driver.
        gpus: all that CUDA shows to this process.
        missing: why no GPU can be used; empty if one can.
    """

    version: str | None
    cuda_version: str | None
    gpus: tuple[Gpu, ...]
    missing: str


class _DriverError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def driver_facts(library: str = LIBRARY) -> DriverFacts:
    """Ask the driver; never raises.

    Args:
        library: the driver's, by name or path.
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return DriverFacts(None, None, (), f"no NVIDIA driver ({library} is not found)")
    try:
        _call(cuda, "cuInit", ctypes.c_uint(0))
        cuda_version = _cuda_version(cuda)
        gpus = tuple(_gpu(cuda, ordinal) for ordinal in range(_int(cuda, "cuDeviceGetCount")))
    except _DriverError as error:
        if error.code == _NO_DEVICE:
            return DriverFacts(_version(None), None, (), "the NVIDIA driver finds no GPU")
        return DriverFacts(None, None, (), f"the NVIDIA driver does not work ({error})")
    missing = "" if gpus else "the NVIDIA driver shows no GPU to this process (CUDA_VISIBLE_DEVICES?)"
    return DriverFacts(_version(cuda_version), cuda_version, gpus, missing)


def require_gpu(facts: DriverFacts, what: str, remedy: str, ordinal: int = 0) -> Gpu:
    """The GPU of this number.

    Args:
        facts: of `driver_facts`.
        what: needs it, for the error.
        remedy: what to do without one.

    Raises:
        DeviceUnavailableError: no driver, or no such GPU.
    """
    if facts.missing:
        raise DeviceUnavailableError(f"{what}: no NVIDIA GPU found: {facts.missing}; {remedy}")
    if ordinal >= len(facts.gpus):
        raise DeviceUnavailableError(f"{what}: needs GPU {ordinal}, found {len(facts.gpus)}, counted from 0; {remedy}")
    return facts.gpus[ordinal]


def _gpu(cuda: ctypes.CDLL, ordinal: int) -> Gpu:
    device, memory_bytes = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _call(cuda, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(ordinal))
    _call(cuda, "cuDeviceGetName", name, ctypes.c_int(_NAME_BYTES), device)
    _call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(memory_bytes), device)
    major, minor, multiprocessors = (
        _int(cuda, "cuDeviceGetAttribute", ctypes.c_int(attribute), device)
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _MULTIPROCESSORS)
    )
    return Gpu(ordinal, name.value.decode("utf-8", "replace"), f"{major}.{minor}", memory_bytes.value, multiprocessors)


def _cuda_version(cuda: ctypes.CDLL) -> str:
    number = _int(cuda, "cuDriverGetVersion")
    return f"{number // 1000}.{number % 1000 // 10}"


def _version(cuda_version: str | None) -> str | None:
    try:
        return _KERNEL_MODULE.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None if cuda_version is None else f"CUDA {cuda_version}"


def _int(cuda: ctypes.CDLL, function: str, *arguments: object) -> int:
    value = ctypes.c_int()
    _call(cuda, function, ctypes.byref(value), *arguments)
    return value.value


def _call(cuda: ctypes.CDLL, function: str, *arguments: object) -> None:
    try:
        code = getattr(cuda, function)(*arguments)
    except AttributeError:
        raise _DriverError(-1, f"its library has no {function}") from None
    if code:
        raise _DriverError(code, f"{function}: {_error_text(cuda, code)}")


def _error_text(cuda: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    try:
        cuda.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
    except AttributeError:
        return f"error {code}"
    return f"error {code}, {text.value.decode('utf-8', 'replace')}" if text.value else f"error {code}"
