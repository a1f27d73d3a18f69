"""Set before anything loads torch or an engine: tests run in several processes, each on one thread.

Two processes whose threads spin for the same two cores are an order of magnitude slower than one thread each.
Compiled models go to a folder that is removed with the process, not to the user's cache.
"""

import atexit
import gc
import os
import shutil
import signal
import tempfile

import pytest
from hypothesis import HealthCheck, settings

# Tests do not assert on time, and a loaded machine draws examples slowly.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="ddpm-rt-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# A job that a shell starts in the background ignores Ctrl-C, one under nohup its hang-up, and both hand that on to
# their children: the tests of an interrupted run would wait for ever, or see it end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what is imported by now: millions of objects, 0.6 s for each collection."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Of tests/fuzz; `--fuzz-examples 2000` is the long run."""
    parser.addoption("--fuzz-examples", type=int, default=200, help="random cases that tests/fuzz tries in all")
    parser.addoption("--fuzz-seed", type=int, default=0, help="where they begin (default: 0, the same every time)")
