"""What `export.to_trt` cannot or must not do: one line that says so, and nothing left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest

from commands.errors import EXIT_DEVICE, EXIT_INPUT
from commands.locks import sole_writer
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from export import to_trt
from runtime.device.driver import driver_facts
from tests.gaussian import GaussianNetwork

needs_no_gpu = pytest.mark.skipif(not driver_facts().missing, reason="needs a machine without an NVIDIA GPU")


Refusal = Callable[[Callable[..., int], Sequence[str]], tuple[int, str]]


def run(*arguments: object) -> int:
    return to_trt.main([str(argument) for argument in arguments])


def test_two_writers(gaussian: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "unet.plan"
    with sole_writer(out):
        assert run("--onnx", gaussian, "--out", out) == EXIT_INPUT
        assert "another program is writing it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(
    gaussian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    monkeypatch.setattr(to_trt, "_prepare", lambda *arguments: pytest.fail("it went to work"))
    assert run("--onnx", gaussian, "--out", tmp_path / "unet.plan") == EXIT_INPUT
    note, process_line, error = capsys.readouterr().err.splitlines()
    assert "has no digest" in note
    assert process_line.startswith(f"{gaussian}: predicts ")
    assert "are left on that disk; make room" in error
    assert list(tmp_path.iterdir()) == []


def of_the_folder(name: str, folder: Path) -> Path:
    """Files that are no network of ours, made where they are asked for."""
    path = folder / name
    process = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", 50))
    model = onnx.load(GaussianNetwork(process, 0.2, 0.5).save_onnx(path))
    if name == "junk.onnx":
        path.write_bytes(b"junk" * 1000)
        return path
    if name == "static.onnx":
        for entry in (*model.graph.input, *model.graph.output):
            entry.type.tensor_type.shape.dim[0].Clear()
            entry.type.tensor_type.shape.dim[0].dim_value = 4
    else:
        # ONNX Runtime has QuickGelu, TensorRT's parser has not.
        last = model.graph.node[-1]
        domain, kind = {"gelu.onnx": ("com.microsoft", "QuickGelu"), "attention.onnx": ("", "Attention")}[name]
        if kind == "Attention":
            model.opset_import[0].version = 23
            model.ir_version = 10
            inputs = ["before"] * 3
        else:
            model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
            inputs = ["before"]
        last.output[0] = "before"
        model.graph.node.append(onnx.helper.make_node(kind, inputs, ["prediction"], name="mid/special", domain=domain))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("name", "flags", "says"),
    [
        ("junk.onnx", [], "cannot be read as an ONNX model"),
        ("static.onnx", [], "takes batches of 4 only, expected an open first axis"),
        ("gelu.onnx", [], "cannot take the node mid/special of kind QuickGelu"),
        ("gelu.onnx", ["--fp16"], "cannot take the node mid/special of kind QuickGelu"),
        ("attention.onnx", [], "cannot build the node mid/special of kind Attention .opset 23.; export the network"),
    ],
)
def test_networks_that_cannot_be_built(
    name: str, flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = of_the_folder(name, tmp_path)
    assert run("--onnx", source, *flags, "--out", tmp_path / "unet.plan") == EXIT_INPUT
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"export.to_trt: {source}: ")
    assert says.replace(".", "") in error.replace(".", "").replace("(", "").replace(")", "")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--out", "unet.onnx"], EXIT_INPUT, "unet.onnx: the name ends in '.onnx', expected '.plan'"),
        (["--onnx", "none.onnx"], EXIT_INPUT, "none.onnx: no such file"),
        (["--checkpoint", "none"], EXIT_INPUT, "none: no such checkpoint folder"),
        (["--checkpoint", "a", "--onnx", "b"], EXIT_INPUT, "not allowed with argument"),
        (["--fp16", "--bf16"], EXIT_INPUT, "not allowed with argument"),
        (["--beta-schedule", "linear"], EXIT_INPUT, "process flags are for --onnx"),
        (["--flavor", "cuda"], EXIT_INPUT, "invalid choice"),
        (["--strip", "--refit"], EXIT_INPUT, "--strip, --refit: for TensorRT alone, found TensorRT-RTX"),
        (["--version-compatible"], EXIT_INPUT, "--version-compatible: for TensorRT alone"),
        (["--timing-cache", "file"], EXIT_INPUT, "--timing-cache: for TensorRT alone"),
        (["--hardware-compatibility", "ampere_plus"], EXIT_INPUT, "--hardware-compatibility: for TensorRT alone"),
        (["--compute-capabilities", "9.0"], EXIT_INPUT, "does not target 9.0"),
        (["--compute-capabilities", "7.5", "--bf16"], EXIT_INPUT, "on 7.5 TensorRT-RTX has no bf16"),
        (["--builder-optimization-level", "6"], EXIT_INPUT, "expected 0 to 5"),
        (["--workspace", "much"], EXIT_INPUT, "expected a size such as 4096 (MiB)"),
        (["--min-batch", "8", "--max-batch", "4"], EXIT_INPUT, "expected min ≤ opt ≤ max"),
        (["--maxShapes=x:8x3"], EXIT_INPUT, "no such checkpoint folder"),
        pytest.param(["--export-layers", "f"], EXIT_DEVICE, "--export-layers: no NVIDIA GPU found", marks=needs_no_gpu),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], code: int, says: str, refusal: Refusal) -> None:
    found, error = refusal(run, arguments)
    assert found == code
    assert says in error


def test_shapes_of_another_network(gaussian: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--onnx", gaussian, "--maxShapes=x:8x3x32x32", "--out", tmp_path / "unet.plan") == EXIT_INPUT
    assert "--maxShapes: x is 8x3x32x32, expected Nx1x4x4" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_is_too_large(networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--onnx", networks / "digits.onnx", "--out", tmp_path / "unet.plan")
    assert run(*arguments, "--batch", 10**8) == EXIT_INPUT
    error = capsys.readouterr().err.splitlines()[-1]
    assert "a batch of 100000000 needs more memory than TensorRT-RTX may take" in error
    assert "give a smaller --max-batch or --batch" in error
    assert list(tmp_path.iterdir()) == []


def test_without_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("export.tensorrt_options._is_installed", lambda module: module == "tensorrt_rtx")
    assert run("--flavor", "tensorrt", "--out", tmp_path / "unet.plan") == EXIT_DEVICE
    error = capsys.readouterr().err
    assert "TensorRT is not installed (no module 'tensorrt'); pip install" in error
    assert error.count("\n") == 1
