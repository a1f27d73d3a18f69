"""Entries that change together, killed and failing at every rename."""

import os
import shutil
from pathlib import Path

import pytest

from commands.file_sets import FileSet
from diffusion.errors import InputError

ENTRIES = ("unet.plan", "weights", "grid.png", "unet.plan.json")
OLD = {"unet.plan": "1", "weights": "1", "grid.png": "1", "unet.plan.json": "1"}
NEW = {"unet.plan": "2", "weights": "2", "unet.plan.json": "2"}


class Killed(BaseException):
    """As a signal that cannot be caught."""


def write(folder: Path, contents: dict[str, str]) -> None:
    for name, content in contents.items():
        if name == "weights":
            (folder / name).mkdir()
            (folder / name / "inside").write_text(content)
        else:
            (folder / name).write_text(content)


def read(paths: dict[str, Path]) -> dict[str, str]:
    files = {name: path / "inside" if path.is_dir() else path for name, path in paths.items()}
    return {name: file.read_text() for name, file in files.items() if file.exists()}


def outside(folder: Path) -> dict[str, str]:
    """As a program sees it that knows the names alone."""
    return read({name: folder / name for name in ENTRIES})


def through(files: FileSet) -> dict[str, str]:
    return read({name: files.current(name) for name in ENTRIES})


@pytest.mark.parametrize("error", [Killed, OSError])
@pytest.mark.parametrize("old", [OLD, {}])
def test_old_or_new_at_every_moment(tmp_path, monkeypatch, error, old):
    calls, fails_at = [0], [-1]

    def counted(call):
        def replacement(*arguments, **options):
            calls[0] += 1
            if calls[0] == fails_at[0]:
                raise error
            return call(*arguments, **options)

        return replacement

    for owner, name in ((Path, "replace"), (Path, "unlink"), (os, "fsync"), (Path, "touch")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    # A kill leaves what an error would clean up.
    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: fails_at[0] < 0 and rmtree(path, **options))
    seen = set()
    for count in range(1, 100):
        folder = tmp_path / str(count)
        folder.mkdir()
        write(folder, old)
        (folder / "other").write_text("mine")
        files = FileSet(folder, "unet.plan", ENTRIES)
        calls[0], fails_at[0] = 0, count
        try:
            with files.replaced() as temporary:
                write(temporary, NEW)
            failed = False
        except (Killed, InputError):
            failed = True
        fails_at[0] = -1
        assert through(files) in (old, NEW)
        visible = outside(folder)
        seen.add(tuple(sorted(visible.items())))
        if old:
            assert "unet.plan" in visible
        # Of an old one and a new one there are never both, but for the first entry, which is there at any moment.
        assert len({content for name, content in visible.items() if name != "unet.plan"}) <= 1
        decided = through(files) == NEW
        files.settle()
        assert outside(folder) == through(files) == (NEW if decided else old)
        with files.replaced() as temporary:
            write(temporary, NEW)
        assert outside(folder) == NEW
        assert (folder / "other").read_text() == "mine"
        if not failed:
            assert count > 10
            assert len(seen) > 3
            assert set(os.listdir(folder)) == {*NEW, "other"}
            return
    pytest.fail("it never ended")


def test_what_is_no_folder_of_new_files_is_left_alone(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".unet.plan.ddpm-rt.new").symlink_to(tmp_path / "elsewhere")
    files = FileSet(tmp_path, "unet.plan", ENTRIES)
    with pytest.raises(InputError, match="is no folder of new files"), files.replaced():
        pytest.fail("it went to work")
