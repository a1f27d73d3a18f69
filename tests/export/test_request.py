"""The exporters as functions: what they are asked, what they refuse, and what they return."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import export
from commands.locks import sole_writer
from diffusion.errors import InputError
from export import Exported, ExportRequest, TensorRtOptions, export_onnx, export_openvino, export_trt
from export.request import as_request
from runtime.formats.batch_profile import BatchProfile
from runtime.formats.openvino_description import OpenVinoDescription
from runtime.formats.plan_description import PlanDescription
from runtime.formats.sidecar import read_sidecar
from runtime.process_flags import ProcessFlags


def test_what_is_public_is_found() -> None:
    assert [getattr(export, name).__name__ for name in export.__all__] == export.__all__
    with pytest.raises(AttributeError, match="no attribute 'export_tensorflow'"):
        _ = export.export_tensorflow  # type: ignore[attr-defined]


def test_paths_may_be_texts() -> None:
    request = ExportRequest("unet.xml", onnx="unet.onnx")  # type: ignore[arg-type]
    assert (request.out, request.onnx) == (Path("unet.xml"), Path("unet.onnx"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"checkpoint": Path("a"), "onnx": Path("b.onnx")}, "found a checkpoint a and an ONNX file b.onnx; give one"),
        ({"precision": "int8"}, "precision is 'int8', expected one of fp32, fp16, bf16"),
    ],
)
def test_requests_that_say_two_things(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ExportRequest(Path("unet.onnx"), **fields)


def test_a_request_may_be_said_field_by_field() -> None:
    flags = ProcessFlags(beta_schedule="linear")
    fields: dict[str, Any] = {"onnx": "unet.onnx", "precision": "bf16", "fold": False, "process": flags}
    request = as_request("unet.xml", **fields, allow_pickle=True, debug=True)
    assert request == ExportRequest(Path("unet.xml"), None, Path("unet.onnx"), "bf16", False, flags, True, True)
    assert as_request("unet.xml") == ExportRequest(Path("unet.xml"))
    assert as_request(request) is request
    with pytest.raises(InputError, match="an ExportRequest was given and fields of it beside it"):
        as_request(request, precision="bf16")
    with pytest.raises(InputError, match="an ExportRequest was given and fields of it beside it"):
        export_onnx(ExportRequest(Path("unet.onnx")), precision="fp16")


def test_exporters_take_a_request_or_its_fields(networks: Path, gaussian: Path, tmp_path: Path) -> None:
    onnx_file = export_onnx(networks / "digits", tmp_path / "unet.onnx")
    assert onnx_file.path.read_bytes() == (networks / "digits.onnx").read_bytes()
    engine = export_openvino(tmp_path / "unet.xml", onnx_file=str(gaussian), fold=False)
    check(engine, gaussian, "fp32")
    assert engine["summary"] == engine.report["summary"]
    assert engine["engine"]["time_path"] == {"folded": False}
    plan = export_trt(str(tmp_path / "unet.plan"), TensorRtOptions(flavor="rtx"), onnx_file=gaussian)
    check(plan, gaussian, "fp32")


def test_an_exporter_refuses_what_it_does_not_make(gaussian: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="precision is 'fp16', expected one of fp32, bf16"):
        export_openvino(ExportRequest(tmp_path / "unet.xml", onnx=gaussian, precision="fp16"))
    with pytest.raises(InputError, match="is ONNX already, expected a checkpoint"):
        export_onnx(ExportRequest(tmp_path / "unet.onnx", onnx=gaussian))
    with pytest.raises(InputError, match="fold is False, expected True"):
        export_onnx(ExportRequest(tmp_path / "unet.onnx", fold=False))
    with pytest.raises(InputError, match="process flags are for --onnx"):
        export_onnx(ExportRequest(tmp_path / "unet.onnx", process=ProcessFlags(beta_schedule="linear")))
    assert list(tmp_path.iterdir()) == []


def test_one_writer_at_a_time(networks: Path, tmp_path: Path) -> None:
    out = tmp_path / "unet.onnx"
    with sole_writer(out), pytest.raises(InputError, match="another program is writing it"):
        export_onnx(ExportRequest(out, networks / "digits"))
    assert list(tmp_path.iterdir()) == []


def check(exported: Exported, source: Path, precision: str) -> None:
    """What holds of any result."""
    assert (exported.source, exported.precision) == (source, precision)
    assert exported.path.is_file()
    assert exported.verification.passed
    assert 0 <= exported.verification.worst <= exported.verification.tolerance
    assert exported.verification.ran_on
    report = json.loads(json.dumps(exported.report, allow_nan=False))
    assert report["size_bytes"] == exported.size_bytes
    assert report["verification"]["passed"]
    assert report["verification"]["worst_relative_error"] == exported.verification.worst
    assert report["summary"].endswith(f"--engine {exported.path}")


def test_an_onnx_file(networks: Path, tmp_path: Path) -> None:
    exported = export_onnx(ExportRequest(tmp_path / "unet.onnx", networks / "digits"))
    check(exported, networks / "digits", "fp32")
    assert exported.path.read_bytes() == (networks / "digits.onnx").read_bytes()


def test_an_openvino_engine(gaussian: Path, tmp_path: Path) -> None:
    exported = export_openvino(ExportRequest(tmp_path / "unet.xml", onnx=gaussian))
    check(exported, gaussian, "fp32")
    assert exported.report["sha256"] == read_sidecar(exported.path, OpenVinoDescription).sha256


def test_a_plan(gaussian: Path, tmp_path: Path) -> None:
    options = TensorRtOptions(flavor="rtx", profiles=(BatchProfile(2, 2, 2),), static=True)
    exported = export_trt(ExportRequest(tmp_path / "unet.plan", onnx=gaussian), options)
    check(exported, gaussian, "fp32")
    assert read_sidecar(exported.path, PlanDescription).engine.profiles == options.profiles
