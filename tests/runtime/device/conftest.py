"""The device in software in place of CUDA: the real kernels, the real graphs, the real bindings."""

import gc
import zlib

import pytest

from tests.runtime.device.software_device import SoftwareKernels, SoftwareMemory


@pytest.fixture
def kernels(request, monkeypatch):
    """A new device; in the end it is sound and empty."""
    kernels = SoftwareKernels(zlib.crc32(request.node.nodeid.encode()))
    for place in ("runtime.device_chain", "runtime.device.capture", "runtime.device.timing"):
        monkeypatch.setattr(f"{place}.import_kernels", lambda: kernels)
    yield kernels
    gc.collect()
    kernels.assert_sound()
    kernels.assert_nothing_left()


@pytest.fixture
def memory(kernels):
    return SoftwareMemory(kernels)
