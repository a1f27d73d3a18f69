"""Compiled models: one whole folder per key, where it can be written, and not without end."""

import os
import time

import pytest

from runtime.engines import model_cache
from runtime.engines.model_cache import compile_cached


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
    monkeypatch.setattr(model_cache, "MOST_CACHE_BYTES", 250)
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
