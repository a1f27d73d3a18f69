"""Files appear whole or not at all."""

import fcntl
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from commands.whole_files import check_name, check_room, sole_writer, whole_file, whole_folder, write_whole_text
from diffusion.errors import InputError


def test_the_file_appears_with_its_whole_content_and_usual_permissions(tmp_path):
    path = tmp_path / "new" / "unet.onnx"
    with whole_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert (temporary.parent, temporary.suffix) == (path.parent, ".onnx")
    assert path.read_text() == "half"
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert os.listdir(path.parent) == ["unet.onnx"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "unet.onnx"
    path.write_text("old")

    def fail() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["unet.onnx"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "stale").write_text("old")
    with whole_folder(path) as temporary:
        (temporary / "fresh").write_text("new")
        assert (path / "stale").exists()
    assert os.listdir(path) == ["fresh"]
    assert os.listdir(tmp_path) == ["model"]


def test_a_failing_folder_leaves_the_old_one(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "stale").write_text("old")

    def fail() -> None:
        with whole_folder(path) as temporary:
            (temporary / "fresh").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(path) == ["stale"]
    assert os.listdir(tmp_path) == ["model"]


def test_what_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="its folder cannot be written .*--out"):
        write_whole_text(tmp_path / "file" / "below", "text")


@pytest.mark.parametrize("write", [whole_file, whole_folder])
def test_a_device_or_a_pipe_is_never_replaced(tmp_path, write):
    """A rename would take the place of the device itself: root lost /dev/null to `--out /dev/null`."""
    pipe, link, open_file = tmp_path / "pipe", tmp_path / "link", tmp_path / "stdout"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    open_file.symlink_to("/proc/self/fd/1")
    for path in (pipe, link, open_file):
        before = path.lstat()
        with pytest.raises(InputError, match="is a device, a pipe or a socket, expected a regular file"), write(path):
            pytest.fail("it went to work")
        with pytest.raises(InputError, match="expected a regular file"):
            check_name(path)
        assert path.lstat().st_ino == before.st_ino
    assert sorted(tmp_path.iterdir()) == [link, pipe, open_file]


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
from commands.whole_files import sole_writer
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


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_comes_between_the_two_renames_leaves_the_old_folder(tmp_path, monkeypatch, error):
    path = tmp_path / "model"
    path.mkdir()
    (path / "stale").write_text("old")
    replace, renamed = Path.replace, []

    def interrupted(self, target):
        renamed.append(target)
        if len(renamed) == 2:
            raise error
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises((KeyboardInterrupt, InputError)), whole_folder(path) as temporary:
        (temporary / "fresh").write_text("new")
    assert os.listdir(path) == ["stale"]
    assert os.listdir(tmp_path) == ["model"]


def test_what_a_killed_process_of_the_same_number_left_is_in_nobodys_way(tmp_path):
    path = tmp_path / "model"
    left = tmp_path / f".model.replaced.{os.getpid()}"
    for folder in (path, left):
        folder.mkdir()
        (folder / "stale").write_text("old")
    with whole_folder(path) as temporary:
        (temporary / "fresh").write_text("new")
    assert os.listdir(path) == ["fresh"]
