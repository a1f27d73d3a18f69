"""compute-sanitizer over small launches, and what it says of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass

from benchmarks.device.kernels_build import ROOT, find_cuda_tool

ERROR_EXIT_CODE = 87
DONE = "all launches are done"
LIMIT_SECONDS = 30.0

_FINDING = re.compile(r"Invalid __|Uninitialized __|Error: Race|Warning: Race|Error: Potential|Potential ")
# Of loops in graphs memcheck says this whatever they do; it is known.
_FALSE_ALARM = "potentially made before memory is allocated"


@dataclass(frozen=True)
class Verdict:
    """What a run says.

    Attributes:
        outcome: `clean`, `errors`, or `refused` where the tool could not do its work.
        reason: a line of what it printed; empty if it is clean.
    """

    outcome: str
    reason: str


def sanitize(check: str, part: str) -> Verdict:
    """Run one part of `sanitized_work` under one tool of compute-sanitizer."""
    tool = find_cuda_tool("compute-sanitizer")
    if tool is None:
        return Verdict("refused", "compute-sanitizer is not on the PATH, nor in CUDA_HOME or /usr/local/cuda")
    command = [tool, "--tool", check, "--error-exitcode", str(ERROR_EXIT_CODE), "--print-limit", "20"]
    command += [sys.executable, "-m", "tests.gpu.sanitized_work", part]
    print("+", *command, flush=True)
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=LIMIT_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode(errors="replace")
        print(output, flush=True)
        found = read_verdict(ERROR_EXIT_CODE, output)
        return found if found.outcome == "errors" else Verdict("refused", f"not done after {LIMIT_SECONDS:.0f} s")
    output = done.stdout.decode(errors="replace")
    print(output, flush=True)
    return read_verdict(done.returncode, output)


def read_verdict(code: int, output: str) -> Verdict:
    """What the tool's exit code and its output say together.

    Clean is what says so itself and whose work came to its end, known false alarms aside. Findings are errors. All
    else, such as a device that the tool does not support, is a refusal.
    """
    lines = [line.strip().lstrip("= ").strip() for line in output.splitlines() if line.strip()]
    summaries = [line for line in lines if re.match(r"(ERROR|RACECHECK) SUMMARY:", line)]
    num_findings = sum(map(int, re.findall(r"(\d+) (?:errors?|hazards?|warnings?)", " ".join(summaries))))
    alarms = [line for line in lines if _FALSE_ALARM in line]
    findings = [line for line in lines if _FINDING.match(line) and _FALSE_ALARM not in line]
    refusal = next((line for line in lines if re.search(r"not supported|Unable to|^\w*Error: ", line)), "")
    if findings:
        return Verdict("errors", findings[0])
    if DONE in output and summaries and num_findings <= len(alarms) and code == (ERROR_EXIT_CODE if alarms else 0):
        return Verdict("clean", "")
    if num_findings > len(alarms) and not refusal:
        first = next((line for line in lines if line not in summaries and not line.startswith("COMPUTE")), "")
        return Verdict("errors", f"{summaries[0]} {first}")
    reason = refusal or (lines[-1] if lines else "it printed nothing")
    return Verdict("refused", f"{reason} (exit code {code})")
