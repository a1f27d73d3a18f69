"""Bad inputs of every command: one line, exit 2, nothing lost and nothing left; `make torture` tries all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.corpus.runner import all_cases
from tests.fuzz.command_lines import commands

# A part of the tables that takes some seconds; which part differs from table to table, not from run to run.
EVERY = 30
ROOT = Path(__file__).resolve().parents[2]


def test_every_command_has_bad_inputs():
    cases = all_cases()
    assert len(cases) >= 400
    without = {"benchmarks.gpu_check", "benchmarks.device", "benchmarks.load", "benchmarks.report", "train.fit_table",
               "export.to_triton", "benchmarks.scale", "runtime.sign"}  # fmt: skip
    assert set(commands()) - without <= {case.command for case in cases}


def test_bad_inputs_are_refused_in_one_line(tmp_path):
    # In a process of its own: forks of one that runs pytest would have the threads of whatever ran before.
    runner = [sys.executable, "-m", "tests.corpus.runner", "--every", str(EVERY)]
    results = tmp_path / "results.json"
    done = subprocess.run(
        [*runner, "--results", str(results)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads(results.read_text())["results"]) == len(all_cases()[::EVERY])
