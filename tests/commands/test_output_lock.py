"""One writer for one file."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from commands.output_lock import check_room, sole_writer
from diffusion.errors import InputError


def test_the_second_writer_is_refused_and_the_next_is_not(tmp_path: Path) -> None:
    out = tmp_path / "engines" / "unet.plan"
    with sole_writer(out):
        with (
            pytest.raises(InputError, match=f"another program is writing it .process {os.getpid()}."),
            sole_writer(out),
        ):
            pass
        with sole_writer(out.with_name("other.plan")):
            pass
    assert list(out.parent.iterdir()) == []
    with sole_writer(out):
        pass


def test_a_writer_that_died_leaves_no_lock(tmp_path: Path) -> None:
    out = tmp_path / "unet.plan"

    code = f"""
import os
from pathlib import Path
from commands.output_lock import sole_writer
with sole_writer(Path({str(out)!r})):
    os._exit(7)"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 7
    assert [path.name for path in tmp_path.iterdir()] == [".unet.plan.lock"]
    with sole_writer(out):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_its_owner_removes_meanwhile_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our opening the file and locking it, its owner ends and removes it: our lock would be of no name."""
    out, place = tmp_path / "unet.plan", tmp_path / ".unet.plan.lock"
    really_lock = fcntl.flock
    calls = []

    def lock_late(descriptor: int, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            place.unlink()
        really_lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with sole_writer(out):
        assert len(calls) == 2
        assert place.read_text(encoding="ascii") == str(os.getpid())
        with pytest.raises(InputError, match="another program is writing it"), sole_writer(out):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_another_takes_meanwhile_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, and a third program has made the file anew: it holds the lock that others see."""
    out, place = tmp_path / "unet.plan", tmp_path / ".unet.plan.lock"
    really_lock = fcntl.flock
    of_the_third = []

    def lock_late(descriptor: int, operation: int) -> None:
        if not of_the_third:
            place.unlink()
            of_the_third.append(os.open(place, os.O_RDWR | os.O_CREAT))
            really_lock(of_the_third[0], operation)
        really_lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with pytest.raises(InputError, match="another program is writing it"), sole_writer(out):
        pass
    os.close(of_the_third[0])


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="its folder cannot be written .* another place with --out"),
        sole_writer(tmp_path / "file" / "unet.plan"),
    ):
        pass


def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_room(tmp_path / "unet.plan", 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 4 * 10**6))
    with pytest.raises(InputError, match="needs about 5 MB, and 4 MB are left on that disk; make room"):
        check_room(tmp_path / "unet.plan", 5 * 10**6)
