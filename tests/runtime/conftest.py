"""What the tests of `runtime.sample` share."""

from pathlib import Path

import pytest

from tests.runtime.gaussian_folder import NETWORK


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds unet.onnx."""
    NETWORK.save_onnx(tmp_path / "unet.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path
