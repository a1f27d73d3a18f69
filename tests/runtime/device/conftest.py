"""The device in software in place of CUDA: the real kernels, the real graphs, the real bindings."""

import pytest

from tests.runtime.device.software_device import SoftwareMemory, software_device


@pytest.fixture
def kernels(request, monkeypatch):
    with software_device(request.node.nodeid, monkeypatch) as kernels:
        yield kernels


@pytest.fixture
def memory(kernels):
    return SoftwareMemory(kernels)
