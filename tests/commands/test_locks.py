"""One writer at a time."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from commands.joint_writers import joint_writer
from commands.locks import lock_place, sole_writer
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
from commands.locks import sole_writer
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


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOLCK, "its file system has no locks"),
        (errno.ENOSYS, "its file system has no locks"),
        (errno.EOPNOTSUPP, "its file system has no locks"),
        (errno.EIO, "cannot be locked .Input/output error."),
    ],
)
@pytest.mark.parametrize("write", [sole_writer, lambda path: joint_writer(path, lambda alone: None)])
def test_a_lock_that_cannot_be_had_is_one_line(tmp_path, monkeypatch, write, code, says):
    def fails(descriptor, kind):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(InputError, match=f"unet.plan: {says}"), write(tmp_path / "unet.plan"):
        pytest.fail("it went to work")


def test_a_shared_lock_that_cannot_be_had_is_one_line(tmp_path, monkeypatch):
    flock = fcntl.flock

    def fails(descriptor, kind):
        if kind == fcntl.LOCK_SH:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", fails)
    path = tmp_path / "run.json"
    with pytest.raises(InputError, match="run.json: cannot be locked"), joint_writer(path, lambda alone: None):
        pytest.fail("it went to work")


@pytest.mark.parametrize("kind", ["link", "link to nothing", "hard link", "pipe", "folder", "text"])
def test_what_has_the_name_of_a_lock_and_is_none_is_left_alone(tmp_path, kind):
    mine, place = tmp_path / "mine", lock_place(tmp_path / "unet.plan")
    mine.write_text("precious")
    if kind.startswith("link"):
        place.symlink_to(mine if kind == "link" else tmp_path / "nothing")
    elif kind == "hard link":
        place.hardlink_to(mine)
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.write_text("notes that are longer than any process id")
    before = sorted(tmp_path.iterdir())
    with (
        pytest.raises(InputError, match="is not the lock that is expected there; remove it"),
        sole_writer(tmp_path / "unet.plan"),
    ):
        pytest.fail("it went to work")
    assert sorted(tmp_path.iterdir()) == before
    assert mine.read_text() == "precious"


def test_the_lock_of_another_program_is_not_removed(tmp_path: Path) -> None:
    """Somebody removed ours as he took it for one of a dead program, and another program made its own."""
    place = lock_place(tmp_path / "unet.plan")
    with sole_writer(tmp_path / "unet.plan"):
        place.unlink()
        place.touch()
    assert place.exists()
