"""From a checkpoint or an ONNX file to published files, as a user runs it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest

from commands.errors import EXIT_DEVICE, EXIT_INPUT, EXIT_VERIFICATION, VerificationError
from commands.locks import sole_writer
from diffusion.process import Process
from export import ExportRequest, export_onnx, to_openvino
from export.openvino_graph import Rewriting
from runtime.engines.opening import open_engine
from runtime.engines.openvino_cpu import OpenVinoEngine
from runtime.engines.torch_checkpoint import load_checkpoint
from runtime.engines.verification import predict_with, verify_engine
from runtime.formats import sidecar as formats_sidecar
from runtime.formats.digest import sealed_text
from runtime.formats.golden import Golden
from runtime.formats.openvino_description import OpenVinoDescription
from runtime.formats.sidecar import golden_path, read_sidecar, sidecar_path
from tests.checkpoints import save_tiny_checkpoint

HAS_BF16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="needs a CPU with bf16 instructions")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights and T = 1000, and its unet.onnx."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_checkpoint(folder / "checkpoint", channels=3)
    export_onnx(ExportRequest(folder / "unet.onnx", folder / "checkpoint"))
    return folder


Refusal = Callable[[Callable[..., int], Sequence[str]], tuple[int, str]]


def run(*arguments: object) -> int:
    return to_openvino.main([str(argument) for argument in arguments])


def test_a_checkpoint(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "engines" / "unet.xml"
    assert run("--checkpoint", folder / "checkpoint", "--out", out, "--json") == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert "time path folded: " in output.err
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "unet.bin",
        "unet.xml",
        "unet.xml.golden.npz",
        "unet.xml.json",
    ]
    fields = json.loads(sidecar_path(out).read_text())
    del fields["digest"]
    assert {name: report[name] for name in fields} == fields
    assert fields["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert fields["golden_sha256"] == hashlib.sha256(golden_path(out).read_bytes()).hexdigest()
    engine, verification = fields["engine"], fields["verification"]
    assert engine["weights_sha256"] == hashlib.sha256(out.with_suffix(".bin").read_bytes()).hexdigest()
    assert engine["onnx_sha256"] == hashlib.sha256((folder / "unet.onnx").read_bytes()).hexdigest()
    assert (engine["flavor"], engine["precision"]) == ("openvino", "fp32")
    assert engine["inputs"]["t"] == {"type": "int64", "shape": ["N"]}
    assert engine["time_path"]["folded"]
    assert engine["time_path"]["num_gathers"] == engine["rewritten"]["merged_lookups"] == 8
    assert Process.from_json(fields["process"]) == load_checkpoint(folder / "checkpoint").process
    assert verification["passed"]
    assert verification["reference"].startswith("PyTorch")
    assert len(verification["timesteps"]) == 16
    assert 0 < verification["worst_relative_error"] < 1e-5
    assert 0 < verification["chain"]["relative_error"] < 1e-5
    # And what was published is what was verified: PyTorch's predictions come out of it.
    check_against_pytorch(out, folder / "checkpoint", 1e-5)


def check_against_pytorch(engine_path: Path, checkpoint: Path, tolerance: float) -> None:
    engine = OpenVinoEngine(engine_path, threads=1)
    reference = load_checkpoint(checkpoint)
    x = np.random.default_rng(0).standard_normal((3, *reference.process.sample.chw)).astype(np.float32)
    t = np.array([999, 517, 0], np.float32)
    expected = reference.predict(x, t)
    difference = predict_with(engine)(x, t) - expected
    assert np.linalg.norm(difference) <= tolerance * np.linalg.norm(expected)


@needs_bf16
def test_folded_bf16_passes_where_unfolded_fails(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, onnx_file = tmp_path / "unet.xml", folder / "unet.onnx"
    assert run("--onnx", onnx_file, "--bf16", "--out", out) == 0
    assert "bf16" in capsys.readouterr().out
    sidecar = read_sidecar(out, OpenVinoDescription)
    assert sidecar.engine.precision == "bf16"
    assert sidecar.verification.tolerance == 3e-2
    assert 1e-3 < sidecar.verification.worst < 3e-2
    # Flat over t: nothing is wrong with how t is treated.
    assert sidecar.verification.worst < 2 * sidecar.verification.median
    check_against_pytorch(out, folder / "checkpoint", 3e-2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    assert run("--onnx", onnx_file, "--bf16", "--no-fold-time", "--out", out) == EXIT_VERIFICATION
    error = capsys.readouterr().err
    assert "nothing was published. Leave out --no-fold-time" in error
    rows = [line.split() for line in error.splitlines() if line.endswith("too large") and line.split()[0].isdigit()]
    assert rows
    assert max(float(row[1]) for row in rows) > 2 * sidecar.verification.worst
    # Up to 256 bf16 has every whole number.
    assert min(int(row[0]) for row in rows) > 200
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_unfolded_float32_passes(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "unet.xml"
    report = to_openvino.export_openvino(ExportRequest(out, onnx=folder / "unet.onnx", fold=False)).report
    assert report["engine"]["time_path"] == {"folded": False}
    assert report["engine"]["inputs"]["t"]["type"] == "float32"
    check_against_pytorch(out, folder / "checkpoint", 1e-5)


def test_the_reference_beside_an_engine_verifies_it_again(gaussian: Path, tmp_path: Path) -> None:
    out = tmp_path / "unet.xml"
    assert run("--onnx", gaussian, "--out", out) == 0
    golden = Golden.from_bytes(golden_path(out).read_bytes(), golden_path(out), "")
    engine = OpenVinoEngine(out, threads=1)
    result = verify_engine(golden, engine.process, predict_with(engine), "fp32", "", "")
    assert result.passed
    assert result.worst == pytest.approx(read_sidecar(out, OpenVinoDescription).verification.worst, abs=1e-7)


def test_a_wrong_conversion_is_not_published(
    gaussian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    convert = to_openvino._convert

    def damaged(model: onnx.ModelProto, source: str) -> tuple[bytes, bytes, Rewriting]:
        table = model.graph.initializer[0]
        values = onnx.numpy_helper.to_array(table).copy()
        values[len(values) // 2 :] *= 1.01
        table.CopyFrom(onnx.numpy_helper.from_array(values, table.name))
        return convert(model, source)

    monkeypatch.setattr(to_openvino, "_convert", damaged)
    assert run("--onnx", gaussian, "--out", tmp_path / "unet.xml") == EXIT_VERIFICATION
    error = capsys.readouterr().err
    assert "nothing was published" in error
    assert "too large" in error
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_the_old_engine_and_no_reader_takes_a_mixed_set(
    gaussian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "unet.xml"
    assert run("--onnx", gaussian, "--out", out) == 0
    assert run("--onnx", gaussian, "--out", tmp_path / "other.xml", "--no-fold-time") == 0
    old = out.read_bytes(), OpenVinoEngine(out).sha256
    published: list[str] = []

    class Killed(BaseException):
        pass

    def killed_before_the_sidecar(path: Path, text: str) -> None:
        published.append(path.name)
        raise Killed

    monkeypatch.setattr(formats_sidecar, "write_whole_text", killed_before_the_sidecar)
    with pytest.raises(Killed):
        to_openvino.export_openvino(ExportRequest(out, onnx=gaussian, fold=False))
    assert published == ["unet.xml.json"]
    assert (out.read_bytes(), OpenVinoEngine(out).sha256) == old
    (tmp_path / "other.xml").replace(out)
    with pytest.raises(ValueError, match="but its sidecar was written for"):
        OpenVinoEngine(out)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--out", "unet.onnx"], EXIT_INPUT, "unet.onnx: the name ends in '.onnx', expected '.xml'"),
        (["--checkpoint", "none"], EXIT_INPUT, "none: no such checkpoint folder"),
        (["--onnx", "none.onnx"], EXIT_INPUT, "none.onnx: no such file"),
        (["--checkpoint", "a", "--onnx", "b"], EXIT_INPUT, "not allowed with argument"),
        (["--beta-schedule", "linear"], EXIT_INPUT, "process flags are for --onnx"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], code: int, says: str, refusal: Refusal) -> None:
    found, error = refusal(run, arguments)
    assert found == code
    assert says in error


def test_bf16_without_its_instructions_says_so_before_any_work(
    gaussian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    get_property = ov.Core.get_property

    def without_bf16(core: ov.Core, device: str, name: str) -> object:
        return ["FP32"] if name == "OPTIMIZATION_CAPABILITIES" else get_property(core, device, name)

    monkeypatch.setattr(ov.Core, "get_property", without_bf16)
    assert run("--onnx", gaussian, "--bf16", "--out", tmp_path / "unet.xml") == EXIT_DEVICE
    error = capsys.readouterr().err
    assert "--bf16 (an engine is verified where it is built): needs bf16 instructions" in error
    assert "use an fp32 engine here" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_two_exports_to_one_file(gaussian: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "unet.xml"
    with sole_writer(out):
        assert run("--onnx", gaussian, "--out", out) == EXIT_INPUT
    assert "another program is writing it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_needs_flags(gaussian: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(gaussian)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    out = tmp_path / "unet.xml"
    assert run("--onnx", tmp_path / "foreign.onnx", "--out", out) == EXIT_INPUT
    assert "--beta-schedule, --prediction-type" in capsys.readouterr().err
    flags = ["--beta-schedule", "linear", "--num-train-timesteps", 50, "--prediction-type", "epsilon"]
    flags += ["--variance-type", "fixed_large", "--clip-sample", "none"]
    assert run("--onnx", tmp_path / "foreign.onnx", *flags, "--out", out) == 0
    process = read_sidecar(out, OpenVinoDescription).process
    assert (process.variance_type, process.clip_sample, process.schedule.num_train_timesteps) == (
        "fixed_large",
        None,
        50,
    )


def test_another_cpu_verifies_an_engine_again(
    gaussian: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "unet.xml"
    assert run("--onnx", gaussian, "--out", out) == 0
    sidecar = json.loads(sidecar_path(out).read_text())
    capsys.readouterr()
    open_engine(out)
    assert capsys.readouterr().err == ""
    sidecar["engine"]["verified_on"]["processor"] = "another CPU (FP32)"
    sidecar_path(out).write_text(sealed_text(sidecar))
    open_engine(out)
    said = capsys.readouterr().err
    assert re.search(r"first use on .*\(.*FP32.*\), OpenVINO 20.*: verifying at 16 timesteps and in a chain", said)
    assert "unet.xml: verified: predictions at most" in said
    open_engine(out)
    assert capsys.readouterr().err == ""
    golden_path(out).write_bytes(b"nothing")
    sidecar["engine"]["verified_on"] = None  # by its exporter nowhere: it is the same engine on the same CPU
    sidecar_path(out).write_text(sealed_text(sidecar))
    open_engine(out)


def test_an_engine_that_computes_something_else_on_another_cpu_is_not_run(gaussian: Path, tmp_path: Path) -> None:
    out = tmp_path / "unet.xml"
    assert run("--onnx", gaussian, "--out", out) == 0
    content = golden_path(out).read_bytes()
    golden = Golden.from_bytes(content, golden_path(out), "")
    changed = replace(golden, prediction=golden.prediction * np.float32(1.001)).to_bytes()
    golden_path(out).write_bytes(changed)
    sidecar = json.loads(sidecar_path(out).read_text())
    sidecar["golden_sha256"] = hashlib.sha256(changed).hexdigest()
    sidecar["engine"]["verified_on"]["runtime"] = "OpenVINO 1.0"
    sidecar_path(out).write_text(sealed_text(sidecar))
    with pytest.raises(VerificationError, match="it differs from ONNX Runtime"):
        open_engine(out)
