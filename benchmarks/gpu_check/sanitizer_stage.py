"""compute-sanitizer over small launches: no access out of bounds, no race."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import dataclass

from benchmarks.gpu_check.context import StageContext, StageSkippedError
from benchmarks.gpu_check.kernels_build import ROOT, find_cuda_tool

ERROR_EXIT_CODE = 87
DONE = "all launches are done"
# What is run under which tool: (tool, part of `sanitized_work`). Loops in graphs last: tools know them least.
RUNS = (
    ("memcheck", "launches"),
    ("racecheck", "launches"),
    ("memcheck", "step"),
    ("memcheck", "while"),
    ("racecheck", "while"),
)
_MIN_SECONDS, _MAX_SECONDS = 5.0, 40.0


@dataclass(frozen=True)
class Verdict:
    """What a run says.

    Attributes:
        outcome: `clean`, `errors`, or `refused` where the tool could not do its work.
        reason: a line of what it printed; empty if it is clean.
    """

    outcome: str
    reason: str


def run(context: StageContext, budget_seconds: float = 70.0) -> None:
    """The stage."""
    tool = find_cuda_tool("compute-sanitizer")
    if tool is None:
        raise StageSkippedError("compute-sanitizer is not on the PATH, nor in CUDA_HOME or /usr/local/cuda")
    _ = context.kernels  # or the reason why there are none
    end = time.monotonic() + budget_seconds
    verdicts = []
    for check, part in RUNS:
        left = end - time.monotonic()
        if left < _MIN_SECONDS:
            verdict = Verdict("refused", "no time was left")
        else:
            verdict = sanitize(context, tool, check, part, min(left, _MAX_SECONDS))
        verdicts.append(verdict)
        context.add("runs", {"tool": check, "part": part, "outcome": verdict.outcome, "reason": verdict.reason})
        if verdict.outcome != "refused":
            context.check(f"{check}, {part}", verdict.outcome == "clean", verdict.reason)
    if all(verdict.outcome == "refused" for verdict in verdicts):
        raise StageSkippedError(f"compute-sanitizer refused: {verdicts[0].reason}")
    context.record(
        "lines",
        [
            f"{check}, {part}: {verdict.outcome}{f' ({verdict.reason})' if verdict.reason else ''}"
            for (check, part), verdict in zip(RUNS, verdicts, strict=True)
        ],
    )


def sanitize(context: StageContext, tool: str, check: str, part: str, limit_seconds: float) -> Verdict:
    """Run one part under one tool."""
    command = [tool, "--tool", check, "--error-exitcode", str(ERROR_EXIT_CODE), "--print-limit", "20"]
    command += [sys.executable, "-m", "benchmarks.gpu_check.sanitized_work", str(context.work_folder), part]
    print("+", *command, flush=True)
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit_seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode(errors="replace")
        print(output, flush=True)
        found = read_verdict(ERROR_EXIT_CODE, output)
        return found if found.outcome == "errors" else Verdict("refused", f"not done after {limit_seconds:.0f} s")
    output = done.stdout.decode(errors="replace")
    print(output, flush=True)
    return read_verdict(done.returncode, output)


def read_verdict(code: int, output: str) -> Verdict:
    """What the tool's exit code and its output say together.

    Clean is what says so itself and whose work came to its end. Findings are errors. All else, such as a device that
    the tool does not support, is a refusal.
    """
    lines = [line.strip().lstrip("= ").strip() for line in output.splitlines() if line.strip()]
    summaries = [line for line in lines if re.match(r"(ERROR|RACECHECK) SUMMARY:", line)]
    findings = sum(map(int, re.findall(r"(\d+) (?:errors?|hazards?|warnings?)", " ".join(summaries))))
    refusal = next((line for line in lines if re.search(r"not supported|Unable to|^\w*Error: ", line)), "")
    accesses = [line for line in lines if re.match(r"(Invalid __|Error: Race|Warning: Race|Error: Potential)", line)]
    if accesses:
        return Verdict("errors", accesses[0])
    if code == 0 and DONE in output and summaries and not findings:
        return Verdict("clean", "")
    if findings and not refusal:
        first = next((line for line in lines if line not in summaries and not line.startswith("COMPUTE")), "")
        return Verdict("errors", f"{summaries[0]} {first}")
    reason = refusal or (lines[-1] if lines else "it printed nothing")
    return Verdict("refused", f"{reason} (exit code {code})")
