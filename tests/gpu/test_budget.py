"""What the runner hears of tests that fail, are skipped, or outlast their budget; planted ones, run by it alone."""

import os
import time

import pytest

from benchmarks.device.findings import SkippedError
from benchmarks.gpu_check.stage_runner import StageRunner, exit_code
from benchmarks.gpu_check.stages import REHEARSAL_PATIENCE, Stage
from tests.gpu.machines import STAND_IN

PLANTED = os.environ.get("DDPM_RT_PLANTED_TEST", "")


if PLANTED:

    @pytest.mark.gpu
    def test_that_passes(findings):
        findings.record("figure", 7)

    @pytest.mark.gpu
    @pytest.mark.budget(1.0 / REHEARSAL_PATIENCE)
    def test_that_is_planted():
        if PLANTED == "fails":
            assert [1, 2] == [1, 3], "3 of 4 differ"
        elif PLANTED == "lacks":
            raise SkippedError("diffusers cannot be imported")
        else:
            time.sleep(60)


@pytest.fixture
def run(tmp_path, monkeypatch):
    if STAND_IN:
        pytest.skip("this is what is run")

    def run_planted(name):
        monkeypatch.setenv("DDPM_RT_PLANTED_TEST", name)
        machine = "tests.gpu.software_machine:SoftwareMachine"
        stage = Stage("planted", "planted tests", 60, ("budget",), proves=True)
        (entry,) = StageRunner(tmp_path, 600.0, machine).run([stage], lambda entries: None)
        return entry

    return run_planted


def test_a_test_that_is_planted_is_a_check_that_does_not_hold(run):
    entry = run("fails")
    assert (entry["status"], entry["reason"]) == ("failed", "1 checks: test_budget.py::test_that_is_planted")
    passed, failed = entry["checks"]
    assert passed == {"name": "test_budget.py::test_that_passes", "passed": True}
    assert "3 of 4 differ" in failed["found"]
    assert entry["figures"]["figure"] == 7
    assert exit_code([entry], 3) == 3


def test_a_test_that_is_planted_is_skipped_with_the_reason(run):
    entry = run("lacks")
    assert entry["status"] == "passed"
    assert "test_budget.py::test_that_is_planted: diffusers cannot be imported" in entry["figures"]["skipped"]


def test_a_test_that_outlasts_its_budget_ends_its_process_and_is_named(run):
    entry = run("hangs")
    assert entry["status"] == "error"
    assert entry["reason"].endswith("in tests/gpu/test_budget.py::test_that_is_planted")
    assert entry["seconds"] < 50
    assert any("test_that_is_planted" in line for line in entry["log_tail"])
    assert {"name": "test_budget.py::test_that_passes", "passed": True} in entry["checks"]
    assert exit_code([entry], 3) == 3
