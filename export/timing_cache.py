"""The times of kernels that TensorRT measured, kept from one build to the next in the user's cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from commands.whole_files import whole_file
from diffusion.errors import InputError
from runtime.engines.cache_folder import can_keep, user_cache_folder


def default_timing_cache(version: str, capability: str) -> Path | None:
    """Where the times of one TensorRT version on one kind of GPU are kept; None where no cache folder is."""
    if not can_keep():
        return None
    return user_cache_folder("timing") / f"tensorrt-{version}-sm{capability.replace('.', '')}.cache"


class TimingCache:
    """A cache that a configuration uses; `save` writes back what the build added."""

    def __init__(self, config: Any, path: Path | None) -> None:
        self._config, self._path = config, path
        self.sha256: str | None = None
        if path is None:
            return
        content = path.read_bytes() if path.is_file() else b""
        self._cache = config.create_timing_cache(content)
        # Of another version or GPU, or damaged: it is only a cache, and a fresh one takes its place.
        if content and (self._cache is None or not config.set_timing_cache(self._cache, ignore_mismatch=False)):
            content, self._cache = b"", config.create_timing_cache(b"")
        if not content:
            config.set_timing_cache(self._cache, ignore_mismatch=False)

    def save(self) -> None:
        """Write the file, whole."""
        if self._path is None:
            return
        content = bytes(self._config.get_timing_cache().serialize())
        with whole_file(self._path) as temporary:
            temporary.write_bytes(content)
        self.sha256 = hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def timing_cache(config: Any, path: Path | None) -> Iterator[TimingCache]:
    """Attach a cache file to a builder's configuration, for this process alone until the end.

    Args:
        config: the builder's.
        path: the file, made if missing; None for no cache at all.

    Raises:
        InputError: its folder cannot be written.
    """
    if path is None:
        yield TimingCache(config, None)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(path.name + ".lock").open("w")
    except OSError as error:
        raise InputError(
            f"{path}: its folder cannot be written ({error.strerror}); give --timing-cache none, or another file"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two builds at once would each forget what the other measured
        yield TimingCache(config, path)
