"""What the tests of the runtime share."""

from pathlib import Path

import pytest

from runtime.engines.opening import open_engine
from tests.runtime.device.software_device import SoftwareMemory, software_device
from tests.runtime.gaussian_folder import NETWORK, seal_file


@pytest.fixture(scope="session")
def network_is_known(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The comparison at the first use of unet.onnx was made, and what it says was said, whichever test comes first."""
    path = seal_file(NETWORK.save_onnx(tmp_path_factory.mktemp("known") / "unet.onnx"))
    for backend in ("auto", "onnxruntime"):
        open_engine(path, backend=backend, threads=1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds unet.onnx."""
    seal_file(NETWORK.save_onnx(tmp_path / "unet.onnx"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def kernels(request, monkeypatch):
    """The device in software in place of CUDA: the real kernels, the real graphs, the real bindings."""
    with software_device(request.node.nodeid, monkeypatch) as kernels:
        yield kernels


@pytest.fixture
def memory(kernels):
    """Of that device."""
    return SoftwareMemory(kernels)
