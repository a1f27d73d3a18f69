"""The device on the host in place of CUDA, where a library for CPUs reads and writes its addresses."""

import pytest

from tests.runtime.device.host_device import HostDeviceMemory, HostKernels


@pytest.fixture
def memory():
    return HostDeviceMemory()


@pytest.fixture
def kernels(memory, monkeypatch):
    kernels = HostKernels(memory.streams)
    monkeypatch.setattr("runtime.device_chain.import_kernels", lambda: kernels)
    monkeypatch.setattr("runtime.device.capture.import_kernels", lambda: kernels)
    return kernels
