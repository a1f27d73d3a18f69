"""The device in software with memory that the host may use: a library for CPUs stands in for one on a GPU."""

import zlib

import pytest

from tests.runtime.device.software_device import SoftwareKernels, SoftwareMemory


@pytest.fixture
def kernels(request, monkeypatch):
    """A new device; in the end it is sound. An engine's stream lives as long as the engine."""
    kernels = SoftwareKernels(zlib.crc32(request.node.nodeid.encode()))
    kernels.software_share_memory()
    for place in ("runtime.chain.device", "runtime.device.streams"):
        monkeypatch.setattr(f"{place}.import_kernels", lambda: kernels)
    yield kernels
    kernels.assert_sound()


@pytest.fixture
def memory(kernels):
    return SoftwareMemory(kernels)
