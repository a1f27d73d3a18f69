"""Stages for the tests of what runs them: one for each way to end."""

import os
import signal
import subprocess
import sys
import time

from benchmarks.gpu_check.context import StageSkippedError


def works(context, factor=1):
    context.record("figure", 20 * factor)
    context.record("lines", ["a line"])
    context.check("two and two", True)
    context.target("speed", 1.5, 1.3, at_least=True)


def fails(context):
    context.check("holds", True)
    context.check("does not hold", 1 + 1 == 3, "3 of 4 differ")
    context.record("after", "goes on")


def raises(context):
    context.record("before", float("nan"))
    raise ValueError("out of\nrange")


def is_skipped(context):
    raise StageSkippedError("nvcc is missing")


def fails_and_is_skipped(context):
    context.check("does not hold", False)
    raise StageSkippedError("PyTorch is missing")


def crashes(context):
    context.record("before", 1)
    print("something that libraries print", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(context):
    """With a child that does not want to end either."""
    child = subprocess.Popen(
        [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"]
    )
    context.record("child", child.pid)
    print("hangs", flush=True)
    time.sleep(60)
