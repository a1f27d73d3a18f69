"""A machine for each test: the device in software, and under the marker `gpu` the GPU that is here.

`benchmarks.gpu_check` runs these tests on machines that are borrowed for minutes. There every result is written to its
file as soon as it is known, and a test that takes longer than its budget ends the process, also from inside the driver.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks.device.command import leave
from benchmarks.device.findings import Findings, SkippedError
from benchmarks.device.kernels_build import load_kernels
from benchmarks.gpu_check.stages import REHEARSAL_PATIENCE
from commands.whole_files import write_whole_text
from tests.gpu.machines import STAND_IN, WORK_FOLDER, open_machine

FINDINGS = os.environ.get("DDPM_RT_GPU_FINDINGS")
DEFAULT_BUDGET_SECONDS = 45.0  # the first test that needs PyTorch imports it


def _publish(found):
    if FINDINGS:
        write_whole_text(Path(FINDINGS), json.dumps({"status": "running", **found}, allow_nan=False))


_findings = Findings(_publish)


@pytest.fixture(params=["software", pytest.param("gpu", marks=pytest.mark.gpu)])
def machine(request, monkeypatch, tmp_path):
    """A `GpuMachine`."""
    if request.param == "gpu" and not STAND_IN:
        yield open_machine()
        return
    if STAND_IN:
        load_kernels(Path(WORK_FOLDER))
    from tests.gpu.software_machine import SoftwareMachine
    from tests.runtime.device.software_device import software_device

    with software_device(request.node.nodeid, monkeypatch) as kernels:
        yield SoftwareMachine(tmp_path, kernels)


@pytest.fixture
def findings():
    """Where a test keeps figures."""
    return _findings


def pytest_runtest_setup(item):
    """Skip what needs a GPU, with one line, where there is none."""
    if item.get_closest_marker("gpu") is None or STAND_IN:
        return
    from runtime.device.driver import driver_facts

    missing = driver_facts().missing
    if missing:
        pytest.skip(f"no NVIDIA GPU found: {missing}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """What a machine lacks skips a test."""
    try:
        return (yield)
    except SkippedError as error:
        pytest.skip(str(error))


if FINDINGS:

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(item):
        """Keep to the test's budget, and say which one is running."""
        marker = item.get_closest_marker("budget")
        seconds = (marker.args[0] if marker else DEFAULT_BUDGET_SECONDS) * (REHEARSAL_PATIENCE if STAND_IN else 1)
        _findings.record("running", item.nodeid)
        # A thread of C, which needs no lock of Python's.
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def pytest_runtest_logreport(report):
        """Write each result at once."""
        if report.skipped:
            _findings.add("skipped", f"{_short(report.nodeid)}: {report.longrepr[2].removeprefix('Skipped: ')}")
        elif report.failed or report.when == "call":
            crash = getattr(report.longrepr, "reprcrash", None)
            found = crash.message if crash else str(report.longrepr or "")
            _findings.check(_short(report.nodeid), report.passed, " ".join(found.split())[:400])

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(session, exitstatus):
        """Say how it ended."""
        figures = _findings.figures
        figures.pop("running", None)
        if exitstatus not in (0, 1):
            _findings.ended("error", f"pytest ended with {int(exitstatus)}")
        elif figures.get("skipped") and not _findings.num_checks:
            _findings.ended("skipped", figures["skipped"][0].partition(": ")[2])
        else:
            _findings.ended("passed")

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(config):
        """Leave at once: threads of libraries may hold the process for minutes."""
        leave(0 if not _findings.failed_checks else 1)


def _short(nodeid: str) -> str:
    return nodeid.rpartition("/")[2].replace("[gpu]", "").replace("gpu-", "").replace("-gpu", "")
