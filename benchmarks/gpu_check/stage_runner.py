"""Runs stages one after the other, each in a process that is ended when its time is over."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.kernels_build import ROOT
from benchmarks.gpu_check.stages import Stage
from commands.program import say

MIN_SECONDS = 5.0
"""With less time left than this a stage is not begun."""

_TAIL_LINES = 15
_GRACE_SECONDS = 2.0
# Kept back from the last stage, so that the report is written in time.
_RESERVE_SECONDS = 3.0

Entry = dict[str, Any]


class StageRunner:
    """Runs stages within a time for all of them.

    Args:
        work_folder: for requests, results and logs, and for what the stages build.
        seconds: for everything, from now on.
        clock: seconds that only grow.
    """

    def __init__(self, work_folder: Path, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._work_folder = work_folder.resolve()
        self._clock = clock
        self._end = clock() + seconds
        self._seconds = seconds

    def run(self, stages: Sequence[Stage], publish: Callable[[list[Entry]], None]) -> list[Entry]:
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
                entries[-1] = self._run_one(stage, min(stage.budget_seconds, left))
            say(f"  {entries[-1]['status']} {entries[-1].get('reason', '')}".rstrip())
            publish(entries)
        return entries

    def _entry(self, stage: Stage, status: str, reason: str = "", **more: Any) -> Entry:
        entry = {"name": stage.name, "title": stage.title, "status": status, "proves": stage.proves}
        return entry | ({"reason": reason} if reason else {}) | more

    def _run_one(self, stage: Stage, limit_seconds: float) -> Entry:
        folder = self._work_folder / "stages"
        folder.mkdir(parents=True, exist_ok=True)
        request, result, log = (folder / f"{stage.name}.{kind}" for kind in ("request.json", "result.json", "log"))
        result.unlink(missing_ok=True)
        request.write_text(
            json.dumps(
                {
                    "function": stage.function,
                    "arguments": dict(stage.arguments),
                    "work_folder": str(self._work_folder),
                    "result": str(result),
                }
            )
        )
        begin = self._clock()
        code = self._wait(request, log, limit_seconds)
        seconds = round(self._clock() - begin, 2)
        findings = _read(result)
        status, reason = findings.pop("status", "running"), findings.pop("reason", "")
        if code is None:
            status, reason = "timeout", f"ended after {limit_seconds:.0f} s"
            if limit_seconds < stage.budget_seconds:
                reason += f", what was left of {self._seconds:.0f} s"
        elif status == "running":
            status, reason = "error", f"the process ended with {_exit_text(code)}"
        entry = self._entry(stage, status, reason, seconds=seconds, budget_seconds=stage.budget_seconds, **findings)
        if status in ("error", "timeout"):
            entry["log_tail"] = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        return entry

    def _wait(self, request: Path, log: Path, limit_seconds: float) -> int | None:
        """The exit code; None if it had to be ended."""
        command = [sys.executable, "-m", "benchmarks.gpu_check.stage_process", str(request)]
        # What compilers keep between calls goes to the work folder too. cuBLAS promises the same bits on several
        # streams only with a workspace of one size.
        environment = os.environ | {
            "PYTHONUNBUFFERED": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(self._work_folder / "inductor"),
            "TRITON_CACHE_DIR": str(self._work_folder / "triton"),
            "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
            try:
                return process.wait(timeout=limit_seconds)
            except subprocess.TimeoutExpired:
                return None
            finally:
                _end_group(process)


def exit_code(entries: Sequence[Entry], verification: int) -> int:
    """`verification` if a stage that proves something did not get to its end or failed there, else 0.

    A stage that was skipped has said what it needs and proves nothing either way.
    """
    broken = [entry for entry in entries if entry["proves"] and entry["status"] in ("failed", "error", "timeout")]
    return verification if broken else 0


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what the stage started too: compilers, other tools."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE_SECONDS)
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # It leads a group of its own, so the group has its number, also after it has ended.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _read(result: Path) -> Entry:
    try:
        content: Entry = json.loads(result.read_text())
    except (OSError, ValueError):
        return {}
    return content


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
