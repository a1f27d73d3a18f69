"""The check's command: stages in processes of their own, budgets, a report after each, exit codes. Without a GPU."""

import itertools
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks.device import command as device_command
from benchmarks.device.kernels_build import ROOT
from benchmarks.gpu_check import borrowed, command, process_group
from benchmarks.gpu_check.process_group import ProcessGroup
from benchmarks.gpu_check.report import table, write_report
from benchmarks.gpu_check.stage_runner import StageRunner, exit_code
from benchmarks.gpu_check.stages import BUILD, LONG, SHORT, SHORT_MINUTES, Stage, choose_stages
from diffusion.errors import InputError
from runtime.device.driver import DriverFacts, Gpu

GPU = Gpu(0, "NVIDIA Test", "9.0", 2**34, 132)


class PlantedRunner(StageRunner):
    def command(self, stage, result):
        return [sys.executable, "-m", "tests.benchmarks.planted_stages", stage.name, str(result)]


def a_stage(name, proves=False, budget_seconds=60.0):
    return Stage(name, f"stage that {name}", budget_seconds, proves=proves)


@pytest.fixture
def run(tmp_path):
    def run_stages(*stages, seconds=600.0):
        return PlantedRunner(tmp_path, seconds).run(stages, lambda entries: None)

    return run_stages


def test_a_stage_that_works_leaves_its_figures(run):
    (entry,) = run(a_stage("works"))
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
    assert exit_code([failed | {"proves": False}], 3) == 3  # a check is a check wherever it is made


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
    entry, after = run(a_stage("hangs", proves=True, budget_seconds=3.0), a_stage("works"))
    assert (entry["status"], entry["reason"]) == ("timeout", "ended after 3 s")
    assert entry["log_tail"] == ["hangs"]
    assert len(entry["figures"]["children"]) == 2
    expect_gone(entry["figures"]["children"])
    assert after["status"] == "passed"
    assert exit_code([entry], 3) == 3  # what hangs proves nothing


def test_an_orphan_in_a_session_of_its_own_is_ended(run):
    (entry,) = run(a_stage("leaves_an_orphan"))
    assert entry["status"] == "passed"
    assert entry["seconds"] < 50
    expect_gone(entry["figures"]["children"])


def expect_gone(pids):
    """They have ended, or wait to be buried by whoever inherited them."""
    for pid in pids:
        for _ in range(100):
            if _state(pid) == "Z":
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"process {pid} is still running")


def _state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "Z"


def test_a_stage_that_hangs_when_its_work_is_done_has_passed(run):
    (entry,) = run(a_stage("hangs_at_its_end", proves=True))
    assert (entry["status"], entry["figures"]) == ("passed", {"figure": 1})
    assert entry["seconds"] < 50


def test_a_process_that_does_not_end_after_sigkill_does_not_hang_the_check(tmp_path, monkeypatch):
    monkeypatch.setattr(process_group, "_KILLED_SECONDS", 0.1)
    monkeypatch.setattr(process_group, "_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(process_group, "_signal_group", lambda group, number: None)
    with (tmp_path / "log").open("wb") as log, ProcessGroup(["sleep", "60"], tmp_path, {}, log) as group:
        assert group.poll(0.1) is None
    assert group.stuck == [group._process.pid]
    monkeypatch.undo()
    group._process.kill()
    group._process.wait()


def test_a_skipped_stage_says_what_it_needs_and_fails_nothing(run):
    (entry,) = run(a_stage("is_skipped", proves=True))
    assert (entry["status"], entry["reason"]) == ("skipped", "nvcc is missing")
    assert exit_code([entry], 3) == 0


def test_what_failed_before_the_rest_was_skipped_is_a_failure(run):
    (entry,) = run(a_stage("fails_and_is_skipped", proves=True))
    assert (entry["status"], entry["reason"]) == ("failed", "1 checks: does not hold; PyTorch is missing")


def test_stages_for_which_no_time_is_left_are_not_begun(tmp_path):
    now = [0.0]
    runner = PlantedRunner(tmp_path, 10.0, clock=lambda: now[0])
    published = []

    def publish(entries):
        published.append([entry["status"] for entry in entries])
        now[0] += 1.5

    entries = runner.run([a_stage("works"), a_stage("works")], publish)
    assert published == [["running"], ["passed"], ["passed", "running"], ["passed", "skipped"]]
    assert entries[1]["reason"] == "no time is left of 10 s"


def test_the_last_stage_gets_what_is_left(run, monkeypatch):
    monkeypatch.setattr("benchmarks.gpu_check.stage_runner.MIN_SECONDS", 0.5)
    (entry,) = run(a_stage("hangs", budget_seconds=60.0), seconds=5.0)
    assert entry["status"] == "timeout"
    assert entry["reason"] == "ended after 2 s, what was left of 5 s"


@pytest.fixture
def planted(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "StageRunner", PlantedRunner)
    monkeypatch.setattr("runtime.device.driver.driver_facts", lambda: DriverFacts("580.1", "13.0", (GPU,), ""))

    def check(*stages, more=()):
        monkeypatch.setattr(command, "SHORT", stages)
        out = tmp_path / "results" / "gpu-check.json"
        code = command.main(["--out", str(out), "--work-folder", str(tmp_path / "work"), *more])
        return code, json.loads(out.read_text())

    return check


def test_the_report_is_whole_after_every_stage(planted, monkeypatch, capsys):
    reports = []

    def write(path, head, entries, finished):
        report = write_report(path, head, entries, finished)
        assert json.loads(path.read_text()) == report
        reports.append(([entry["status"] for entry in entries], finished))
        return report

    monkeypatch.setattr(command.reports, "write_report", write)
    code, report = planted(a_stage("works"), a_stage("fails", proves=True))
    assert code == 3
    assert reports == [
        (["running"], False),
        (["passed"], False),
        (["passed", "running"], False),
        (["passed", "failed"], False),
        (["passed", "failed"], True),
    ]
    assert report["gpu"]["name"] == "NVIDIA Test"
    assert (report["driver"], report["driver_cuda_version"], report["minutes"]) == ("580.1", "13.0", SHORT_MINUTES)
    assert report["command"].startswith("python -m benchmarks.gpu_check --out")
    assert {"commit", "machine"} <= report.keys()
    printed = capsys.readouterr().out
    assert "NVIDIA Test, driver 580.1" in printed
    assert "met    speed: 1.500 (≥ 1.3)" in printed
    assert "failed" in printed
    assert planted(a_stage("works"))[0] == 0


def test_what_a_second_visit_needs_is_brought_back(planted, tmp_path, monkeypatch):
    monkeypatch.setattr(borrowed, "PART_BYTES", 1000)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "compile-cache.bin").write_bytes(bytes(range(256)) * 9)
    folder = tmp_path / "back"
    planted(a_stage("works"), a_stage("raises"), more=["--bring-back", str(folder)])
    names = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert set(names) == {"gpu-check.json", "logs.tar.gz", *(f"compile-cache.bin.{n}" for n in range(3))}
    assert all(size <= 1000 for name, size in names.items() if "cache" in name)
    assert json.loads((folder / "gpu-check.json").read_text())["finished"]
    with tarfile.open(folder / "logs.tar.gz") as logs:
        assert {"works.json", "raises.log"} <= set(logs.getnames())
        assert b"ValueError" in logs.extractfile("raises.log").read()

    from benchmarks.device.compile_cache import load_compile_cache

    loaded = []
    torch = type("torch", (), {"compiler": type("compiler", (), {"load_cache_artifacts": loaded.append})})
    assert load_compile_cache(torch, folder) == 2304
    assert loaded == [bytes(range(256)) * 9]
    assert load_compile_cache(torch, tmp_path) == 0


def test_carried_wheels_are_installed_for_every_stage(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"holds no \*.whl"):
        borrowed.install_wheels(tmp_path, tmp_path)
    (tmp_path / "bad.whl").write_text("")
    with pytest.raises(InputError, match="pip refused"):
        borrowed.install_wheels(tmp_path, tmp_path)
    (tmp_path / "bad.whl").unlink()
    wheel = tmp_path / "carried_thing-1.0-py3-none-any.whl"
    import zipfile

    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("carried_thing.py", "answer = 42\n")
        archive.writestr(
            "carried_thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried-thing\nVersion: 1.0\n"
        )
        archive.writestr(
            "carried_thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("carried_thing-1.0.dist-info/RECORD", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    borrowed.install_wheels(tmp_path, tmp_path / "work")
    done = subprocess.run(
        [sys.executable, "-c", "import carried_thing; print(carried_thing.answer)"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "42\n", done.stderr


def test_without_a_gpu_it_ends_at_once(tmp_path, monkeypatch, capsys):
    absent = DriverFacts(None, None, (), "no NVIDIA driver (libcuda.so.1 is not found)")
    monkeypatch.setattr("runtime.device.driver.driver_facts", lambda: absent)
    out, work = tmp_path / "gpu-check.json", tmp_path / "work"
    assert command.main(["--out", str(out), "--work-folder", str(work)]) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "gpu-check: no NVIDIA GPU found: no NVIDIA driver" in error
    assert not out.exists()
    assert not work.exists()
    assert command.main(["--long"]) == 4
    assert "gpu-check-long: no NVIDIA GPU found" in capsys.readouterr().err


def test_without_pytest_nothing_is_built(planted, monkeypatch, capsys, tmp_path):
    honest = command.importlib.util.find_spec
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == "pytest" else honest(name))
    monkeypatch.setattr(command, "SHORT", SHORT)
    assert command.main(["--work-folder", str(tmp_path / "work"), "--stages", "noise"]) == 4
    assert "has no module 'pytest', which the stages bits need; install it, or carry wheels" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_bad_arguments_are_one_line(capsys):
    assert command.main(["--stages", "nose"]) == 2
    assert "stage is 'nose', expected one of build, bits, noise, step, chain, network" in capsys.readouterr().err
    assert command.main(["--minutes", "0"]) == 2
    assert "--minutes is 0.0, expected a positive number" in capsys.readouterr().err


def test_chosen_stages_bring_the_build_they_need():
    def names(*wanted):
        return [(stage.name, stage.tests) for stage in choose_stages(SHORT, wanted)]

    build, bits = ("build", ()), ("noise", "step", "chain")
    assert names("step") == [build, ("bits", ("step",))]
    assert names("bandwidth", "bits") == [build, ("bits", bits), ("bandwidth", ())]
    assert names("tensorrt") == [("tensorrt", ())]
    assert choose_stages(SHORT, None) == list(SHORT)
    asked = ["build", "noise", "step", "chain", "network", "overhead", "bandwidth", "eager"]
    assert [name for name, _ in names(*asked)] == ["build", "bits", "network", "overhead", "bandwidth", "eager"]
    with pytest.raises(InputError, match="expected one of"):
        choose_stages(LONG, ["sanitizer"])


@pytest.mark.parametrize("stages", [SHORT, LONG])
def test_every_stage_names_what_exists(stages):
    import inspect

    assert len({stage.name for stage in stages}) == len(stages)
    for stage in stages:
        for part in stage.tests:
            assert (ROOT / "tests" / "gpu" / f"test_{part}.py").is_file()
        if not stage.tests:
            place, arguments = device_command.MEASUREMENTS[stage.name]
            parameters = inspect.signature(device_command.named(f"benchmarks.device.{place}")).parameters
            assert {"machine", "findings", *arguments} <= set(parameters), stage.name


def test_what_is_worth_most_comes_first_and_fits_its_time():
    names = [stage.name for stage in SHORT]
    assert names[:5] == ["build", "bits", "network", "overhead", "compiled"]
    assert {stage.name for stage in SHORT if stage.proves} == {
        "build", "bits", "network", "sanitizer", "network-fp32"
    }  # fmt: skip
    assert BUILD in LONG
    # Up to the peers everything gets its turn even if it takes all of its time.
    up_to = itertools.accumulate(stage.budget_seconds for stage in SHORT)
    assert dict(zip(names, up_to, strict=True))["compiled"] < 60 * SHORT_MINUTES


def test_the_table_says_what_was_missed():
    entry = {"title": "bandwidth", "status": "passed", "seconds": 1.25}
    entry["targets"] = [{"name": "share", "value": 0.8, "bound": 0.85, "at_least": True, "met": False}]
    entry["figures"] = {"lines": ["ddpm 3600 GB/s"]}
    assert table([entry]) == [
        "bandwidth  passed      1.2 s",
        "  MISSED share: 0.800 (≥ 0.85)",
        "  ddpm 3600 GB/s",
    ]
