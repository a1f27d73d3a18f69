"""A visit to a borrowed machine, from a bare folder to the report, on the device in software."""

import json

import pytest

from runtime.kernels_module import import_kernels
from tests.gpu.rehearsal import rehearse


@pytest.mark.slow
def test_from_a_bare_folder_to_the_report(tmp_path):
    from pathlib import Path

    stages = ("build", "noise", "network", "compiled", "sanitizer", "eager")
    code, back = rehearse(tmp_path, stages, kernels=Path(import_kernels().__file__))
    report = json.loads((back / "gpu-check.json").read_text())
    statuses = {stage["name"]: (stage["status"], stage.get("reason", "")) for stage in report["stages"]}
    passed = dict.fromkeys(("build", "network", "compiled", "eager"), ("passed", ""))
    skipped = statuses.pop("sanitizer")
    assert statuses == passed | {"bits": ("passed", "")}
    assert skipped[0] == "skipped"
    assert "compute-sanitizer" in skipped[1]
    assert (code, report["finished"]) == (0, True)
    by_name = {stage["name"]: stage for stage in report["stages"]}
    assert len(by_name["bits"]["checks"]) == 9
    assert by_name["bits"]["checks"][0] == {"name": "test_noise.py::test_many_normals_of_one_sample", "passed": True}
    assert by_name["network"]["figures"]["prediction_errors_bf16"]["5"] < 0.05
    assert {file.name for file in back.iterdir()} == {"gpu-check.json", "logs.tar.gz"}
    assert not (tmp_path / "bare" / "build" / "lib").exists()
