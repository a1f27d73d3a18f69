"""Networks that several exporters' tests convert."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from export import ExportRequest, export_onnx, source
from tests.checkpoints import save_tiny_checkpoint
from tests.gaussian import GaussianNetwork


@pytest.fixture(scope="session", autouse=True)
def traces_are_kept() -> Iterator[None]:
    """What PyTorch's exporter has traced in this process, seconds even for tiny networks, is not traced again."""
    traced: dict[tuple[Any, ...], onnx.ModelProto] = {}
    trace = source._trace

    def kept(checkpoint: Any, path: Path, opset: int, debug: bool) -> onnx.ModelProto:
        network = getattr(checkpoint, "network_sha256", None)
        if network is None:
            return trace(checkpoint, path, opset, debug)
        key = network, json.dumps(checkpoint.process.to_json()), opset
        if key not in traced:
            traced[key] = trace(checkpoint, path, opset, debug)
        copy = onnx.ModelProto()
        copy.CopyFrom(traced[key])
        return copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "_trace", kept)
        yield


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks with attention, as checkpoints and as ONNX files: 8×8 in gray like the digits, and 32×32 in color.

    Read-only: every test of this process shares them.
    """
    folder = tmp_path_factory.mktemp("networks")
    for name, channels, size in (("digits", 1, 8), ("color", 3, 32)):
        save_tiny_checkpoint(folder / name, channels=channels, size=size)
        export_onnx(ExportRequest(folder / f"{name}.onnx", folder / name))
    return folder


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The least network there is, for what is not about the network."""
    process = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", 50))
    return GaussianNetwork(process, 0.2, 0.5).save_onnx(tmp_path_factory.mktemp("gaussian") / "unet.onnx")


@pytest.fixture
def refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Callable[..., int], Sequence[str]], tuple[int, str]]:
    """Run a command in an empty folder: its exit code and the one line that it says, with nothing left behind."""

    def refused(run: Callable[..., int], arguments: Sequence[str]) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        try:
            code = run(*arguments)
        except SystemExit as usage:
            code = int(usage.code or 0)
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
        return code, error

    return refused
