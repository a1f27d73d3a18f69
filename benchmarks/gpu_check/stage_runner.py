"""Runs stages one after the other, each in a process that is ended when its time is over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.device.kernels_build import ROOT
from benchmarks.gpu_check.process_group import ProcessGroup, exit_text
from benchmarks.gpu_check.stages import REHEARSAL_PATIENCE, Stage
from commands.program import say

MIN_SECONDS = 5.0
"""With less time left than this a stage is not begun."""

_TAIL_LINES = 60
# Kept back from the last stage, so that the report is written in time.
_RESERVE_SECONDS = 3.0
_POLL_SECONDS = 0.1
# How long a process may take to end after its work is done: some libraries wait minutes for threads of theirs.
_ENDING_SECONDS = 2.0

Entry = dict[str, Any]


class StageRunner:
    """Runs stages within a time for all of them.

    Args:
        work_folder: for results and logs, and for what the stages build.
        seconds: for everything, from now on.
        machine: the class of the machine that measurements and checks are given, as `module:name`; "" for the GPU.
        clock: seconds that only grow.
    """

    def __init__(
        self, work_folder: Path, seconds: float, machine: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._work_folder = work_folder.resolve()
        self._clock = clock
        self._end = clock() + seconds
        self._seconds = seconds
        self._machine = machine

    def run(self, stages: Sequence[Stage], publish: Callable[[list[Entry]], object]) -> list[Entry]:
        """An entry for each stage; `publish` is called before and after each, with the entries as they are then."""
        entries: list[Entry] = []
        for number, stage in enumerate(stages, 1):
            entries.append(self._entry(stage, "running"))
            publish(entries)
            left = self._end - self._clock() - _RESERVE_SECONDS
            if left < MIN_SECONDS:
                entries[-1] = self._entry(stage, "skipped", f"no time is left of {self._seconds:.0f} s")
            else:
                say(f"stage {number} of {len(stages)}: {stage.title}")
                patience = REHEARSAL_PATIENCE if self._machine else 1
                entries[-1] = self._run_one(stage, min(patience * stage.budget_seconds, left))
            say(f"  {entries[-1]['status']} {entries[-1].get('reason', '')}".rstrip())
            publish(entries)
        return entries

    def _entry(self, stage: Stage, status: str, reason: str = "", **more: Any) -> Entry:
        entry = {"name": stage.name, "title": stage.title, "status": status, "proves": stage.proves}
        return entry | ({"reason": reason} if reason else {}) | more

    def _run_one(self, stage: Stage, limit_seconds: float) -> Entry:
        folder = self._work_folder / "stages"
        folder.mkdir(parents=True, exist_ok=True)
        result, log = folder / f"{stage.name}.json", folder / f"{stage.name}.log"
        result.unlink(missing_ok=True)
        begin = self._clock()
        with (
            log.open("wb") as output,
            ProcessGroup(self.command(stage, result), ROOT, self._environment(result), output) as group,
        ):
            code = self._wait(group, result, limit_seconds)
        seconds = round(self._clock() - begin, 2)
        findings = _read(result)
        status, reason = findings.pop("status", "running"), findings.pop("reason", "")
        if status != "running":  # its work came to an end, whatever became of the process
            pass
        elif code is None:
            status, reason = "timeout", f"ended after {limit_seconds:.0f} s"
            if limit_seconds < stage.budget_seconds:
                reason += f", what was left of {self._seconds:.0f} s"
        else:
            status, reason = "error", f"the process ended with {exit_text(code)}"
        if status in ("error", "timeout") and "running" in findings.get("figures", {}):
            reason += f", in {findings['figures']['running']}"
        entry = self._entry(stage, status, reason, seconds=seconds, budget_seconds=stage.budget_seconds, **findings)
        entry["clocks"] = clocks_now()
        if group.stuck:
            entry["stuck"] = group.stuck
        if status in ("error", "timeout"):
            entry["log_tail"] = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        return entry

    def command(self, stage: Stage, result: Path) -> list[str]:
        """What a stage runs."""
        if not stage.tests:
            words = ["benchmarks.device", stage.name, "--work-folder", str(self._work_folder), "--out", str(result)]
            return [sys.executable, "-m", *words]
        # The tests of this folder alone, without what tests elsewhere need, and whatever else warns: the libraries are
        # those of the machine. The budgets of the tests are kept by their own conftest.py.
        words = ["pytest", "-q", "-s", "-m", "gpu", "-W", "default", "--confcutdir=tests/gpu", "--tb=short"]
        words += ["-p", "no:cacheprovider", "-o", "faulthandler_timeout=0", "-p", "no:xdist"]
        return [sys.executable, "-m", *words, *(f"tests/gpu/test_{part}.py" for part in stage.tests)]

    def _environment(self, result: Path) -> dict[str, str]:
        # What compilers keep between calls goes to the work folder too. cuBLAS promises the same bits on several
        # streams only with a workspace of one size.
        environment = os.environ | {
            "PYTHONUNBUFFERED": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(self._work_folder / "inductor"),
            "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),
            "DDPM_RT_GPU_WORK_FOLDER": str(self._work_folder),
            "DDPM_RT_GPU_FINDINGS": str(result),
        }
        return environment | ({"DDPM_RT_GPU_MACHINE": self._machine} if self._machine else {})

    def _wait(self, group: ProcessGroup, result: Path, limit_seconds: float) -> int | None:
        """The exit code; None if it did not end by itself in time."""
        end = self._clock() + limit_seconds
        done_at: float | None = None
        while self._clock() < end:
            code = group.poll(_POLL_SECONDS)
            if code is not None:
                return code
            if done_at is None and _read(result).get("status", "running") != "running":
                done_at = self._clock()
            if done_at is not None and self._clock() > done_at + _ENDING_SECONDS:
                return None
        return None


def exit_code(entries: Sequence[Entry], verification: int) -> int:
    """`verification` if a check did not hold, or a stage that proves something did not get to its end; else 0.

    A stage that was skipped has said what it needs and proves nothing either way.
    """
    broken = [
        entry
        for entry in entries
        if entry["status"] == "failed" or (entry["proves"] and entry["status"] in ("error", "timeout"))
    ]
    return verification if broken else 0


def clocks_now() -> str | None:
    """The GPU's clocks and temperature just after the work, as nvidia-smi prints them; None without it."""
    query = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,temperature.gpu", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _read(result: Path) -> Entry:
    try:
        content: Entry = json.loads(result.read_text())
    except (OSError, ValueError):
        return {}
    return content
