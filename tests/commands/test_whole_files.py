"""Files appear whole or not at all."""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from commands import whole_files
from commands.locks import sole_writer
from commands.whole_files import (
    check_name,
    check_room,
    temporary_folder,
    whole_file,
    whole_folder,
    write_whole_text,
)
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


def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_room(tmp_path / "unet.plan", 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 4 * 10**6))
    with pytest.raises(InputError, match="needs about 5 MB, and 4 MB are left on that disk; make room"):
        check_room(tmp_path / "unet.plan", 5 * 10**6)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_comes_between_the_two_renames_leaves_the_old_folder(tmp_path, monkeypatch, error):
    """On a file system that cannot exchange two names."""
    monkeypatch.setattr(whole_files, "exchange", lambda first, second: False)
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


def test_a_folder_is_there_at_every_moment_of_its_replacement(tmp_path, monkeypatch):
    path, replaced = tmp_path / "model", []
    path.mkdir()
    monkeypatch.setattr(Path, "replace", lambda *arguments: replaced.append(arguments))
    with whole_folder(path) as temporary:
        (temporary / "fresh").touch()
    assert os.listdir(path) == ["fresh"]
    assert (os.listdir(tmp_path), replaced) == (["model"], [])


KILLED = """
import os
from pathlib import Path
from commands.whole_files import whole_file, whole_folder
file, folder = whole_file(Path("unet.onnx")), whole_folder(Path("model"))
file.__enter__().write_text("half")
(folder.__enter__() / "half").touch()
os._exit(7)
"""


def test_what_a_killed_program_left_is_removed_by_the_next_writer_and_nothing_else_is(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment, check=False)
    left = os.listdir(tmp_path)
    assert (ended.returncode, len(left)) == (7, 2)
    others = {".unet.abcdefgh.onnx", ".notes.ddpm-rt.txt", ".x.ddpm-rt.link1234"}
    for name in others - {".x.ddpm-rt.link1234"}:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".x.ddpm-rt.link1234").symlink_to(tmp_path / ".notes.ddpm-rt.txt")
    with whole_file(tmp_path / "other.onnx") as living, temporary_folder(tmp_path / "set") as living_folder:
        living.write_text("whole")
        with sole_writer(tmp_path / "unet.plan"):
            assert set(os.listdir(tmp_path)) == others | {living.name, living_folder.name, ".unet.plan.lock"}
    assert (tmp_path / "other.onnx").read_text() == "whole"
    assert set(os.listdir(tmp_path)) == others | {"other.onnx"}


def test_a_temporary_file_that_is_taken_for_abandoned_is_made_anew(tmp_path, monkeypatch):
    """Between making and locking it, another program locks and removes it."""
    flock, calls = fcntl.flock, []

    def late(descriptor, kind):
        calls.append(kind)
        if len(calls) == 1:
            raise BlockingIOError
        if len(calls) == 2:
            for each in tmp_path.iterdir():
                each.unlink()
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    with whole_file(tmp_path / "unet.onnx") as temporary:
        temporary.write_text("whole")
    assert len(calls) == 3
    assert (tmp_path / "unet.onnx").read_text() == "whole"


def test_a_temporary_folder_that_is_removed_before_it_is_open_is_made_anew(tmp_path, monkeypatch):
    make, made = tempfile.mkdtemp, []

    def removed(*arguments):
        made.append(make(*arguments))
        if len(made) == 1:
            Path(made[0]).rmdir()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", removed)
    with whole_folder(tmp_path / "model") as temporary:
        (temporary / "fresh").touch()
    assert (len(made), os.listdir(tmp_path / "model")) == (2, ["fresh"])


def test_of_a_link_to_a_folder_the_folder_is_replaced(tmp_path):
    target, link = tmp_path / "disk" / "models", tmp_path / "models"
    target.mkdir(parents=True)
    (target / "stale").touch()
    link.symlink_to(target)
    with whole_folder(link) as temporary:
        (temporary / "fresh").touch()
    assert (link.readlink(), os.listdir(target)) == (target, ["fresh"])
    assert (sorted(os.listdir(tmp_path)), os.listdir(tmp_path / "disk")) == (["disk", "models"], ["models"])


@pytest.mark.parametrize("code", [errno.EPERM, errno.EIO])
def test_modes_and_synced_folders_are_for_file_systems_that_have_them(tmp_path, monkeypatch, code):
    """FAT, and folders shared with Windows; an error of the disk is one."""
    fsync = os.fsync

    def sync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    def chmod(path, mode):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "chmod", chmod)
    expected = contextlib.nullcontext() if code == errno.EPERM else pytest.raises(InputError, match="cannot be written")
    with expected:
        write_whole_text(tmp_path / "train.json", "whole")
    assert os.listdir(tmp_path) == (["train.json"] if code == errno.EPERM else [])


def test_a_file_system_that_tells_no_size_is_taken_at_its_word(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
    check_room(tmp_path / "unet.plan", 5 * 10**6)
