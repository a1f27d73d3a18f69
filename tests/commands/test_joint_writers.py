"""Many programs that write into one folder: one of them prepares it, and none changes it under the others."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from commands import joint_writers
from commands.joint_writers import joint_writer
from commands.locks import lock_place, sole_writer
from diffusion.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(joint_writers, "_WAIT_SECONDS", 0.1)


def test_the_first_is_alone_and_the_others_are_not(tmp_path, quick):
    path, calls = tmp_path / "run.json", []
    with joint_writer(path, lambda alone: calls.append(("first", alone))):
        with joint_writer(path, lambda alone: calls.append(("second", alone))):
            assert lock_place(path).exists()
        assert lock_place(path).exists()  # the first is at work still
        with pytest.raises(InputError, match="another program is writing it"), sole_writer(path):
            pass
    assert not lock_place(path).exists()
    assert calls == [("first", True), ("first", False), ("second", False)]


def test_a_sole_writer_keeps_them_away(tmp_path, quick):
    path = tmp_path / "run.json"
    with (
        sole_writer(path),
        pytest.raises(InputError, match=rf"another program is writing it \(process {os.getpid()}\)"),
        joint_writer(path, lambda alone: None),
    ):
        pass


def test_what_prepare_refuses_leaves_no_lock(tmp_path, quick):
    path = tmp_path / "run.json"

    def refuse(alone):
        raise InputError("another run")

    with pytest.raises(InputError, match="another run"), joint_writer(path, refuse):
        pass
    assert not lock_place(path).exists()
    with sole_writer(path):
        pass


CHILD = """
import sys
from pathlib import Path
from commands.joint_writers import joint_writer
path = Path("run.json")
def prepare(alone):
    if alone and not path.exists():
        path.write_text(sys.argv[1])
    assert path.read_text()
with joint_writer(path, prepare):
    print(path.read_text())
"""


def test_of_many_that_start_together_all_see_what_one_wrote(tmp_path):
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(number)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    said = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0] * 4
    assert len(set(said)) == 1
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_shared_lock_is_one(tmp_path):
    """What the operating system does, on which all of this stands."""
    first, second = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    fcntl.flock(first, fcntl.LOCK_SH)
    fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with pytest.raises(BlockingIOError):
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for descriptor in (first, second):
        os.close(descriptor)
