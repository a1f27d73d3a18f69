"""Small files in the user's cache: whole, private, bounded, and no reason to fail."""

import os

import pytest

from export.tensorrt_options import default_timing_cache
from runtime.engines import cache_folder
from runtime.engines.cache_folder import can_keep, compile_cached, keep, read_kept, user_cache_folder


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ddpm-rt"


def test_what_is_kept_is_read_by_kind_and_key(root):
    assert read_kept("kernels", "a") is None
    assert keep("kernels", "a", b"one")
    assert keep("kernels", "a", b"two")
    assert keep("kernels", "b", b"three")
    assert [read_kept("kernels", key) for key in "ab"] == [b"two", b"three"]
    assert read_kept("verified", "a") is None
    assert sorted(os.listdir(root)) == ["kernels"]
    assert (root / "kernels").stat().st_mode & 0o077 == 0


def test_the_oldest_go_first(root, monkeypatch):
    monkeypatch.setattr(cache_folder, "MAX_BYTES", 10)
    for place, key in enumerate("abc"):
        keep("kernels", key, b"four")
        newest = max((root / "kernels").iterdir(), key=lambda file: file.stat().st_mtime)
        os.utime(newest, (place, place))
    keep("kernels", "d", b"four")
    assert [read_kept("kernels", key) is not None for key in "abcd"] == [False, False, True, True]
    keep("kernels", "large", bytes(11))  # the newest stays, however large
    assert [file.stat().st_size for file in (root / "kernels").iterdir()] == [11]


def test_nowhere_to_write(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not keep("kernels", "a", b"one")
    assert read_kept("kernels", "a") is None


def test_a_relative_cache_folder_is_ignored(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(user_cache_folder("kernels")) == "/home/somebody/.cache/ddpm-rt/kernels"


def test_a_damaged_file_is_not_read(root):
    keep("verified", "a", b"0123")
    (path,) = (root / "verified").iterdir()
    for content in (b"0122", b"012", b"", b"01234"):
        path.write_bytes(content)
        assert read_kept("verified", "a") is None
    assert keep("verified", "a", b"0123")
    assert read_kept("verified", "a") == b"0123"


def test_what_others_may_write_is_not_read(root, monkeypatch):
    keep("verified", "a", b"0123")
    folder = root / "verified"
    (path,) = folder.iterdir()
    for place in (path, folder):
        mode = place.stat().st_mode
        place.chmod(mode | 0o020)
        assert read_kept("verified", "a") is None
        place.chmod(mode)
        assert read_kept("verified", "a") == b"0123"
    folder.chmod(0o777)
    assert not keep("verified", "b", b"0123")
    folder.chmod(0o700)
    path.rename(root / "elsewhere")
    path.symlink_to(root / "elsewhere")
    assert read_kept("verified", "a") is None
    path.unlink()
    (root / "elsewhere").rename(path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert read_kept("verified", "a") is None


def test_under_a_group_s_umask_too(root):
    umask = os.umask(0o002)
    try:
        assert keep("verified", "a", b"0123")
        assert read_kept("verified", "a") == b"0123"
    finally:
        os.umask(umask)


@pytest.mark.parametrize("home", ["unknown", "empty", "relative"])
def test_without_a_home_nothing_is_kept(home, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.chdir(tmp_path)
    if home == "unknown":

        def no_home():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(cache_folder.Path, "home", no_home)
    else:
        monkeypatch.setenv("HOME", {"empty": "", "relative": "here"}[home])
    assert not can_keep()
    assert not keep("verified", "a", b"one")
    assert read_kept("verified", "a") is None
    assert compile_cached("key", lambda folder: folder) is None
    assert default_timing_cache("10.0", "8.9") is None
    assert list(tmp_path.iterdir()) == []


def test_with_a_home_things_are_kept():
    assert can_keep()
