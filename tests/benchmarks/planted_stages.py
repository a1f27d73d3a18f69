"""Stages for the tests of what runs them, one for each way to end.

python -m tests.benchmarks.planted_stages NAME OUT
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.device.command import leave, measure
from benchmarks.device.findings import SkippedError


def works(machine, findings):
    findings.record("figure", 60)
    findings.add("lines", "a line")
    findings.check("two and two", True)
    findings.target("speed", 1.5, 1.3, at_least=True)


def fails(machine, findings):
    findings.check("holds", True)
    findings.check("does not hold", 1 + 1 == 3, "3 of 4 differ")
    findings.record("after", "goes on")


def raises(machine, findings):
    findings.record("before", float("nan"))
    raise ValueError("out of\nrange")


def is_skipped(machine, findings):
    raise SkippedError("nvcc is missing")


def fails_and_is_skipped(machine, findings):
    findings.check("does not hold", False)
    raise SkippedError("PyTorch is missing")


def crashes(machine, findings):
    findings.record("before", 1)
    print("something that libraries print", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(machine, findings):
    """With a child that does not want to end either, and one in a session of its own, as compilers' servers are."""
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    children = [subprocess.Popen([sys.executable, "-c", program], start_new_session=own) for own in (False, True)]
    findings.record("children", [child.pid for child in children])
    print("hangs", flush=True)
    time.sleep(60)


def leaves_an_orphan(machine, findings):
    """Whose parent is gone, in a session of its own."""
    program = (
        "import subprocess\n"
        "print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL, start_new_session=True).pid)\n"
    )
    told = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    findings.record("children", [int(told.stdout)])


def hangs_at_its_end(machine, findings):
    findings.record("figure", 1)


if __name__ == "__main__":
    name, out = sys.argv[1:]
    found = measure(f"tests.benchmarks.planted_stages:{name}", {}, "builtins:str", Path(out).parent, Path(out))
    if name == "hangs_at_its_end":
        time.sleep(60)
    leave(0 if found["status"] == "passed" else 3)
