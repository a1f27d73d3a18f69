"""Each command is killed, and its disk fails, at a few of its writing system calls; `make torture` takes them all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.supervisor import Fault, missing, watched

ROOT = Path(__file__).parents[2]
WHY = missing()
pytestmark = pytest.mark.skipif(WHY is not None, reason=f"system calls cannot be watched here: {WHY}")
# As many places of each as fit into some seconds. That of ONNX files is one file, and its export takes long.
EVERY = {
    "grid": 24, "png": 31, "npz": 24, "npy": 31, "trajectory": 24, "shards-npz": 31, "shards-png": 61, "shards-tar": 61,
    "convert": 15, "train": 61, "trt": 8, "openvino": 8,
}  # fmt: skip


def write(root: Path) -> int:
    """What the watching is tried on: a folder, a file with two writes, and one that nobody counts."""
    (root / "new").mkdir()
    with (root / "new" / "file").open("wb", buffering=0) as file:
        file.write(b"first")
        file.write(b"second")
        os.fsync(file.fileno())
    (root.parent / "outside").write_text("not counted")
    (root / "new" / "file").replace(root / "file")
    return 7


NAMES = ("openat", "write", "write", "fsync", "rename")
CALLS = [("mkdir", "new"), *((name, "new/file") for name in NAMES)]


def test_calls_are_seen(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    ended = watched(lambda: write(root), root, tmp_path / "said")
    assert (ended.code, ended.calls, ended.said) == (7, CALLS, "")
    assert (root / "file").read_bytes() == b"firstsecond"


@pytest.mark.parametrize(
    ("fault", "code", "left"),
    [
        (Fault(3), -9, {"new", "new/file"}),
        (Fault(3, errno.EIO), errno.EIO, {"new", "new/file"}),
        (Fault(0, errno.ENOSPC, lasting=True), errno.ENOSPC, set()),
    ],
)
def test_a_call_fails_or_is_the_last(tmp_path: Path, fault: Fault, code: int, left: set[str]) -> None:
    root = tmp_path / "root"
    root.mkdir()

    def tries() -> int:
        try:
            return write(root)
        except OSError as error:
            return int(error.errno or 0)

    ended = watched(tries, root, tmp_path / "said", fault)
    assert (ended.code, ended.calls) == (code, CALLS[: fault.at + 1])
    assert {str(path.relative_to(root)) for path in root.rglob("*")} == left
    if left:
        assert (root / "new" / "file").read_bytes() == b"first"


@pytest.mark.slow
def test_old_or_new_wherever_it_is_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.sweep", *(f"{name}/{every}" for name, every in EVERY.items())]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    reports = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [report["wrong"] for report in reports if report["wrong"]] == []
    assert ended.returncode == 0, ended.stderr
    assert {report["case"] for report in reports} == EVERY.keys()
    assert all(report["kill"] and report["EIO"] for report in reports)
    assert sum(report["ENOSPC"] for report in reports) > 10
