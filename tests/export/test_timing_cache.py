"""The file of kernels' times, with a configuration that behaves as TensorRT's documentation says."""

from __future__ import annotations

import fcntl
import hashlib
from pathlib import Path

import pytest

from diffusion.errors import InputError
from export.timing_cache import default_timing_cache, timing_cache


class Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class Config:
    """`IBuilderConfig` as far as caches go: it refuses what was measured elsewhere."""

    def __init__(self) -> None:
        self.used: Cache | None = None

    def create_timing_cache(self, content: bytes) -> Cache | None:
        return None if content == b"damaged" else Cache(content)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.content == b"of another GPU":
            return False
        self.used = cache
        return True

    def get_timing_cache(self) -> Cache | None:
        return self.used


@pytest.mark.parametrize("before", [None, b"old;", b"damaged", b"of another GPU"])
def test_read_used_and_written_back(before: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "timing" / "tensorrt.cache"
    if before is not None:
        path.parent.mkdir()
        path.write_bytes(before)
    config = Config()
    with timing_cache(config, path) as cache:
        assert config.used is not None
        config.used.content += b"new;"
        with path.with_name("tensorrt.cache.lock").open("w") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        cache.save()
    expected = b"old;new;" if before == b"old;" else b"new;"
    assert path.read_bytes() == expected
    assert cache.sha256 == hashlib.sha256(expected).hexdigest()


def test_a_build_that_failed_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tensorrt.cache"
    path.write_bytes(b"old;")
    with pytest.raises(KeyError), timing_cache(Config(), path):
        raise KeyError
    assert path.read_bytes() == b"old;"


def test_no_cache() -> None:
    config = Config()
    with timing_cache(config, None) as cache:
        cache.save()
    assert config.used is None
    assert cache.sha256 is None


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="give --timing-cache none"), timing_cache(Config(), tmp_path / "file" / "c"):
        pass


def test_one_for_each_version_and_kind_of_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert str(default_timing_cache("10.16.1", "9.0")) == "/cache/ddpm-rt/timing/tensorrt-10.16.1-sm90.cache"
