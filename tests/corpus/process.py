"""A process that is watched: its exit code, its peak of memory, its time, and whether it had to be ended."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.corpus.fresh import entry_of

HANG_SECONDS = 60.0
# Beyond start-up: more is refused by the operating system, so that a bomb takes nobody else's memory.
_ADDRESS_SPACE = 6 * 2**30
_ROOT = Path(__file__).resolve().parents[2]
# What commands import when they are asked for it, so that a fork need not.
_IMPORTED = (
    "torch", "diffusers", "onnx", "onnxruntime", "openvino", "safetensors.torch", "PIL.Image", "scipy.linalg",
    "diffusers.pipelines.ddpm.pipeline_ddpm", "runtime.engines.torch_checkpoint", "export.source", "export.time_path",
    "export.onnx_check", "export.openvino_graph", "runtime.engines.openvino_cpu", "runtime.engines.onnx_runtime",
    "train.training", "train.hugging_face", "runtime.serve.app", "runtime.serve.server", "accelerate",
    "export.checkpoints.state_file", "sklearn.datasets", "export.inspection.counts", "tests.fuzz.command_lines",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """What became of a process.

    Attributes:
        code: exit code, or minus a signal.
        peak: bytes of memory at its peak; of a fork, beyond what its parent had.
        cpu_seconds: that it computed.
        hung: whether it was ended because it went on.
    """

    code: int
    peak: int
    cpu_seconds: float
    hung: bool


def import_everything() -> None:
    """What forks are to have already; nothing of it may have started a thread."""
    for name in _IMPORTED:
        importlib.import_module(name)


def run_forked(command: str, argv: Sequence[str], folder: Path, err: Path) -> Ended:
    """Run a command in a fork of this process.

    Args:
        command: module behind `python -m`.
        argv: its arguments.
        folder: that it works in.
        err: the file that its standard error goes to.
    """
    main = entry_of(command)

    def work() -> int:
        os.chdir(folder)
        out, log = os.open(os.devnull, os.O_WRONLY), os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(log, 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        try:
            return int(main(list(argv)))
        finally:
            sys.stderr.flush()

    began = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return _waited(_fork(work), began)


def make_in_fork(make: Callable[[Path], None], folder: Path) -> None:
    """Let a fork make what may take much memory to make."""

    def work() -> int:
        make(folder)
        return 0

    assert _waited(_fork(work), 0).code == 0, f"{make} failed"


def run_fresh(command: str, argv: Sequence[str], folder: Path, err: Path) -> Ended:
    """As `run_forked`, in a new process."""
    with err.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.corpus.fresh", command],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(json.dumps(argv).encode())
        ended = _waited(process.pid, 0)
        process.returncode = ended.code
    return ended


def _fork(work: Callable[[], int]) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.setsid()
        mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + _ADDRESS_SPACE, mapped + _ADDRESS_SPACE))
        code = work()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stderr.flush()
        os._exit(code)


def _waited(child: int, began: int) -> Ended:
    descriptor = os.pidfd_open(child)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        hung = not poll.poll(1000 * HANG_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what it started ends with it
        _, status, usage = os.wait4(child, 0)
    finally:
        os.close(descriptor)
    code: Any = os.waitstatus_to_exitcode(status)
    return Ended(code, usage.ru_maxrss * 1024 - began, usage.ru_utime + usage.ru_stime, hung)
