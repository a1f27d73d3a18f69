"""The check's command: stages in processes of their own, budgets, a report after each, exit codes. Without a GPU."""

import json
import os
import time
from pathlib import Path

import pytest

from benchmarks.gpu_check import command
from benchmarks.gpu_check.report import table, write_report
from benchmarks.gpu_check.stage_runner import StageRunner, exit_code
from benchmarks.gpu_check.stages import BUILD, LONG, SHORT, SHORT_MINUTES, Stage, choose_stages
from diffusion.errors import InputError
from runtime.device.driver import DriverFacts, Gpu

GPU = Gpu(0, "NVIDIA Test", "9.0", 2**34, 132)


def a_stage(name, proves=False, budget_seconds=60.0, **arguments):
    place = f"tests.benchmarks.gpu_check_stages:{name}"
    return Stage(name, f"stage that {name}", place, budget_seconds, proves, arguments=tuple(arguments.items()))


@pytest.fixture
def run(tmp_path):
    def run_stages(*stages, seconds=600.0):
        return StageRunner(tmp_path, seconds).run(stages, lambda entries: None)

    return run_stages


def test_a_stage_that_works_leaves_its_figures(run):
    (entry,) = run(a_stage("works", factor=3))
    assert entry["status"] == "passed"
    assert entry["figures"] == {"figure": 60, "lines": ["a line"]}
    assert entry["checks"] == [{"name": "two and two", "passed": True}]
    assert entry["targets"] == [{"name": "speed", "value": 1.5, "bound": 1.3, "at_least": True, "met": True}]
    assert entry["seconds"] > 0
    assert "reason" not in entry
    assert entry["clocks"] is None  # no nvidia-smi here


def test_a_failed_check_fails_its_stage_and_no_other(run):
    failed, passed = run(a_stage("fails", proves=True), a_stage("works", proves=True))
    assert (failed["status"], passed["status"]) == ("failed", "passed")
    assert failed["reason"] == "1 checks: does not hold"
    assert failed["checks"][1] == {"name": "does not hold", "passed": False, "found": "3 of 4 differ"}
    assert failed["figures"]["after"] == "goes on"
    assert exit_code([failed, passed], 3) == 3
    assert exit_code([passed], 3) == 0


def test_an_error_is_recorded_with_its_text_and_the_end_of_the_log(run):
    (entry,) = run(a_stage("raises"))
    assert (entry["status"], entry["reason"]) == ("error", "ValueError: out of range")
    assert entry["log_tail"][-1] == "range"
    assert entry["figures"]["before"] is None  # JSON has no NaN


def test_a_process_that_dies_is_an_error(run):
    (entry,) = run(a_stage("crashes"))
    assert (entry["status"], entry["reason"]) == ("error", "the process ended with SIGSEGV")
    assert entry["figures"] == {"before": 1}
    assert "something that libraries print" in entry["log_tail"]


def test_a_stage_over_its_budget_is_ended_with_all_that_it_started_and_keeps_its_figures(run):
    entry, after = run(a_stage("hangs", proves=True, budget_seconds=2.0), a_stage("works"))
    assert (entry["status"], entry["reason"]) == ("timeout", "ended after 2 s")
    assert entry["log_tail"] == ["hangs"]
    child = entry["figures"]["child"]
    for _ in range(100):  # it is gone, or waits to be buried by whoever inherited it
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            break
        if _state(child) == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the stage's child is still running")
    assert after["status"] == "passed"
    assert exit_code([entry], 3) == 3  # what hangs proves nothing


def _state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "Z"


def test_a_skipped_stage_says_what_it_needs_and_fails_nothing(run):
    (entry,) = run(a_stage("is_skipped", proves=True))
    assert (entry["status"], entry["reason"]) == ("skipped", "nvcc is missing")
    assert exit_code([entry], 3) == 0


def test_what_failed_before_the_rest_was_skipped_is_a_failure(run):
    (entry,) = run(a_stage("fails_and_is_skipped", proves=True))
    assert (entry["status"], entry["reason"]) == ("failed", "1 checks: does not hold; PyTorch is missing")


def test_stages_for_which_no_time_is_left_are_not_begun(tmp_path):
    now = [0.0]
    runner = StageRunner(tmp_path, 10.0, clock=lambda: now[0])
    published = []

    def publish(entries):
        published.append([entry["status"] for entry in entries])
        now[0] += 1.5

    entries = runner.run([a_stage("works"), a_stage("works")], publish)
    assert published == [["running"], ["passed"], ["passed", "running"], ["passed", "skipped"]]
    assert entries[1]["reason"] == "no time is left of 10 s"


def test_the_last_stage_gets_what_is_left(run, monkeypatch):
    monkeypatch.setattr("benchmarks.gpu_check.stage_runner.MIN_SECONDS", 0.5)
    (entry,) = run(a_stage("hangs", budget_seconds=60.0), seconds=4.0)
    assert entry["status"] == "timeout"
    assert entry["reason"] == "ended after 1 s, what was left of 4 s"


def test_the_report_is_whole_after_every_stage(tmp_path, monkeypatch, capsys):
    reports = []
    out = tmp_path / "results" / "gpu-check.json"

    def write(path, head, entries, finished):
        report = write_report(path, head, entries, finished)
        assert json.loads(path.read_text()) == report
        reports.append(([entry["status"] for entry in entries], finished))
        return report

    monkeypatch.setattr(command.reports, "write_report", write)
    monkeypatch.setattr(command, "SHORT", (a_stage("works"), a_stage("fails", proves=True)))
    monkeypatch.setattr(command, "find_gpu", lambda what: (DriverFacts("580.1", "13.0", (GPU,), ""), GPU))
    arguments = ["--out", str(out), "--work-folder", str(tmp_path / "work")]
    assert command.main(arguments) == 3
    assert reports == [
        (["running"], False),
        (["passed"], False),
        (["passed", "running"], False),
        (["passed", "failed"], False),
        (["passed", "failed"], True),
    ]
    report = json.loads(out.read_text())
    assert report["gpu"]["name"] == "NVIDIA Test"
    assert (report["driver"], report["driver_cuda_version"], report["minutes"]) == ("580.1", "13.0", SHORT_MINUTES)
    assert report["command"].startswith("python -m benchmarks.gpu_check --out")
    assert {"commit", "machine"} <= report.keys()
    printed = capsys.readouterr().out
    assert "NVIDIA Test, driver 580.1" in printed
    assert "met    speed: 1.500 (≥ 1.3)" in printed
    assert "failed" in printed

    monkeypatch.setattr(command, "SHORT", (a_stage("works"),))
    assert command.main(arguments) == 0


def test_without_a_gpu_it_ends_at_once(tmp_path, monkeypatch, capsys):
    absent = DriverFacts(None, None, (), "no NVIDIA driver (libcuda.so.1 is not found)")
    monkeypatch.setattr("runtime.device.driver.driver_facts", lambda: absent)
    out = tmp_path / "gpu-check.json"
    work = tmp_path / "work"
    assert command.main(["--out", str(out), "--work-folder", str(work)]) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "gpu-check: no NVIDIA GPU found: no NVIDIA driver" in error
    assert not out.exists()
    assert not work.exists()
    assert command.main(["--long"]) == 4
    assert "gpu-check-long: no NVIDIA GPU found" in capsys.readouterr().err


def test_bad_arguments_are_one_line(capsys):
    assert command.main(["--stages", "nose"]) == 2
    assert "stage is 'nose', expected one of facts, build, noise" in capsys.readouterr().err
    assert command.main(["--minutes", "0"]) == 2
    assert "--minutes is 0.0, expected a positive number" in capsys.readouterr().err


def test_chosen_stages_bring_the_build_they_need():
    assert [stage.name for stage in choose_stages(SHORT, ["step", "facts"])] == ["facts", "build", "step"]
    assert [stage.name for stage in choose_stages(SHORT, ["tensorrt"])] == ["tensorrt"]
    assert choose_stages(SHORT, None) == list(SHORT)
    with pytest.raises(InputError, match="expected one of"):
        choose_stages(LONG, ["sanitizer"])


@pytest.mark.parametrize("stages", [SHORT, LONG])
def test_every_stage_names_a_function_that_exists(stages):
    import importlib
    import inspect

    assert len({stage.name for stage in stages}) == len(stages)
    for stage in stages:
        module, _, name = stage.function.partition(":")
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        assert {"context", *dict(stage.arguments)} <= set(parameters), stage.name


def test_what_must_hold_comes_before_what_is_measured():
    names = [stage.name for stage in SHORT]
    assert names.index("build") < names.index("noise") < names.index("step") < names.index("chain")
    assert names.index("chain") < names.index("overhead")
    assert names[-2:] == ["compiled-1", "compiled-64"]
    assert {stage.name for stage in SHORT if stage.proves} == {
        "build", "noise", "step", "chain", "network", "sanitizer"
    }  # fmt: skip
    assert BUILD in LONG
    # What proves something gets its turn even if everything before takes all of its time.
    assert sum(stage.budget_seconds for stage in SHORT[: names.index("network") + 1]) < 60 * SHORT_MINUTES


def test_the_table_says_what_was_missed():
    entry = {"title": "bandwidth", "status": "passed", "seconds": 1.25}
    entry["targets"] = [{"name": "share", "value": 0.8, "bound": 0.85, "at_least": True, "met": False}]
    entry["figures"] = {"lines": ["ddpm 3600 GB/s"]}
    assert table([entry]) == [
        "bandwidth  passed      1.2 s",
        "  MISSED share: 0.800 (≥ 0.85)",
        "  ddpm 3600 GB/s",
    ]
