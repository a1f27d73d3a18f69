"""Compiled models: one whole folder per key, where it can be written, and not without end."""

import os
import time

import pytest

from runtime.engines import cache_folder
from runtime.engines.cache_folder import compile_cached


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ddpm-rt" / "models"


def compiling(size=3):
    def compile_in(folder):
        if folder is None:
            return "not cached"
        hit = (folder / "blob").exists()
        (folder / "blob").write_bytes(b"x" * size)
        return "hit" if hit else "miss"

    return compile_in


def test_the_second_time_is_a_hit(root):
    assert [compile_cached(key, compiling()) for key in "aabba"] == ["miss", "hit", "miss", "hit", "hit"]
    assert len(list(root.iterdir())) == 2
    assert root.stat().st_mode & 0o077 == 0


def test_a_failed_compilation_leaves_nothing(root):
    def fail(folder):
        (folder / "blob").write_bytes(b"half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        compile_cached("a", fail)
    assert list(root.iterdir()) == []
    assert compile_cached("a", compiling()) == "miss"


def test_two_at_once_leave_one_whole_folder(root):
    def other_first(folder):
        assert compile_cached("a", compiling()) == "miss"
        return compiling()(folder)

    assert compile_cached("a", other_first) == "miss"
    assert [entry.name for entry in root.iterdir() if entry.name.startswith(".")] == []
    assert compile_cached("a", compiling()) == "hit"


def test_no_cache_where_none_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compile_cached("a", compiling()) == "not cached"


def test_the_least_recently_used_go(root, monkeypatch):
    monkeypatch.setattr(cache_folder, "MAX_CACHE_BYTES", 250)
    for age, key in ((50, "a"), (40, "b")):
        compile_cached(key, compiling(100))
        newest = max(root.iterdir(), key=lambda folder: folder.stat().st_mtime)
        os.utime(newest, (time.time() - age, time.time() - age))
    assert compile_cached("a", compiling(100)) == "hit"
    abandoned = root / ".killed"
    abandoned.mkdir()
    os.utime(abandoned, (0, 0))
    assert compile_cached("c", compiling(100)) == "miss"
    assert not abandoned.exists()
    assert compile_cached("a", compiling(100)) == "hit"
    assert compile_cached("b", compiling(100)) == "miss"
    # One that is larger than the bound still stays, alone.
    assert compile_cached("d", compiling(1000)) == "miss"
    assert compile_cached("d", compiling(1000)) == "hit"
    assert len(list(root.iterdir())) == 1


def test_a_relative_cache_folder_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    compile_cached("a", compiling())
    assert (tmp_path / "home" / ".cache" / "ddpm-rt" / "models").is_dir()


def sealed(root, key="a"):
    """A folder as it is written, and its blob."""
    assert compile_cached(key, compiling()) == "miss"
    (folder,) = root.iterdir()
    return folder, folder / "blob"


def spoil_owner(folder, blob):
    blob.chmod(0o620)


def spoil_folder(folder, blob):
    folder.chmod(0o770)


def add_file(folder, blob):
    (folder / "other.blob").write_bytes(b"x")


def link(folder, blob):
    blob.rename(folder.parent.parent / "kept")
    blob.symlink_to(folder.parent.parent / "kept")


def link_folder(folder, blob):
    folder.rename(folder.parent.parent / "kept")
    folder.symlink_to(folder.parent.parent / "kept")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


SPOILED = [
    spoil_owner,
    spoil_folder,
    add_file,
    link,
    link_folder,
    lambda folder, blob: flip(blob),
    lambda folder, blob: flip(folder / cache_folder.CONTENTS),
    lambda folder, blob: blob.write_bytes(b""),
    lambda folder, blob: blob.unlink(),
    lambda folder, blob: (folder / cache_folder.CONTENTS).unlink(),
    lambda folder, blob: (folder / cache_folder.CONTENTS).write_text("[]"),
]


@pytest.mark.parametrize("spoil", SPOILED)
def test_what_is_not_as_it_was_written_is_compiled_anew(root, spoil):
    spoil(*sealed(root))
    assert compile_cached("a", compiling()) == "miss"
    assert compile_cached("a", compiling()) == "hit"


def test_another_key_s_folder_is_not_this_key_s(root):
    folder, _ = sealed(root)
    folder.rename(root.parent / "kept")
    other, _ = sealed(root, "b")
    other.rename(folder)
    assert compile_cached("a", compiling()) == "miss"


def test_a_cache_that_others_may_write_is_not_used(root, monkeypatch):
    sealed(root)
    root.chmod(0o777)
    assert compile_cached("a", compiling()) == "not cached"
    root.chmod(0o700)
    assert compile_cached("a", compiling()) == "hit"
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert compile_cached("a", compiling()) == "not cached"


def test_under_a_group_s_umask_too(root):
    umask = os.umask(0o002)
    try:
        assert [compile_cached("a", compiling()) for _ in range(2)] == ["miss", "hit"]
    finally:
        os.umask(umask)
