"""A run in shards in a folder: locks keep two programs from drawing one shard, and names appear by a rename."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from commands.joint_writers import joint_writer
from commands.locks import sole_writer
from commands.whole_files import cannot_write, write_whole_text
from diffusion.errors import InputError
from diffusion.json_text import read_json_bytes
from diffusion.regular_files import open_regular, unreadable
from runtime.formats.run_manifest import MANIFEST, RunManifest
from runtime.formats.shard_record import RECORD_REMEDY
from runtime.runs.folder import RunFolder
from runtime.runs.shard_files import write_shard
from runtime.runs.store import RUN_FILES, GrowingFile

# A worker that was killed holds its lock for the moment in which it ends.
_LOCK_SECONDS = 10.0


class FolderStore:
    """A `Store` that is a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def place(self, name: str = "") -> str:
        """As `Store`."""
        return str(self._path / name)

    def manifest(self) -> RunManifest | None:
        """As `Store`."""
        return RunManifest.read(self._path)

    @contextlib.contextmanager
    def claimed(self, identity: dict[str, Any], resume: bool, overwrite: bool) -> Iterator[None]:
        """As `Store`."""
        if self._path.exists() and not self._path.is_dir():
            raise InputError(f"{self._path}: is a file, expected a folder; give another --out")

        def prepare(alone: bool) -> None:
            found = self.manifest()
            if found is not None and found.identity == identity:
                return
            if not alone and (overwrite or found is None):
                what = "has removed its run.json" if found is None else "is drawing another run into it"
                raise InputError(
                    f"{self._path}: another program {what}; wait for it, or choose another place with --out"
                )
            RunFolder.claim(self._path, identity, list(RUN_FILES), resume, overwrite)

        with joint_writer(self._path / MANIFEST, prepare):
            yield

    @contextlib.contextmanager
    def drawing(self, identity: dict[str, Any], shard: str, file: str) -> Iterator[None]:
        """As `Store`."""
        with sole_writer(self._path / file, _LOCK_SECONDS):
            try:
                for left in self._path.glob(f".{shard}.*"):
                    if left.suffix in (".part", ".lock"):
                        continue
                    if left.is_dir():
                        shutil.rmtree(left)
                    else:
                        left.unlink()
            except OSError as error:
                raise cannot_write(self._path, error) from error
            yield

    def listing(self, prefix: str) -> dict[str, int]:
        """As `Store`."""
        try:
            with os.scandir(self._path) as entries:
                return {entry.name: _size(entry) for entry in entries if entry.name.startswith(prefix)}
        except OSError as error:
            raise InputError(f"{self._path}: cannot be read ({error.strerror}); give another --out") from error

    def read(self, names: Sequence[str]) -> dict[str, bytes | InputError]:
        """As `Store`."""
        return {name: self._content(name) for name in names}

    def write(self, name: str, content: bytes) -> None:
        """As `Store`."""
        write_whole_text(self._path / name, content.decode("ascii"))

    def remove(self, name: str) -> None:
        """As `Store`."""
        _remove(self._path / name)

    def write_shard(self, file: str, format_: str, indices: Sequence[int], images: np.ndarray) -> tuple[int, str]:
        """As `Store`."""
        return write_shard(self._path / file, format_, indices, images)

    @contextlib.contextmanager
    def reading(self, file: str) -> Iterator[Path]:
        """As `Store`."""
        yield self._path / file

    def growing(self, name: str) -> GrowingFile:
        """As `Store`."""
        return FileThatGrows(self._path / name)

    def _content(self, name: str) -> bytes | InputError:
        try:
            return read_json_bytes(self._path / name, RECORD_REMEDY)
        except InputError as error:
            return error


class FileThatGrows:
    """A `GrowingFile` that is one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.place = str(path)

    def read(self) -> bytes:
        """As `GrowingFile`."""
        try:
            if not os.path.lexists(self._path):
                return b""
            with open_regular(self._path, "remove it") as file:
                return file.read()
        except OSError as error:
            raise unreadable(self._path, error, "remove it") from error

    def write(self, content: bytes, at: int) -> None:
        """As `GrowingFile`."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            try:
                os.ftruncate(descriptor, at)  # what a kill left of a piece
                written = 0
                while written < len(content):  # a disk that is almost full takes a part
                    written += os.pwrite(descriptor, content[written:], at + written)
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def remove(self) -> None:
        """As `GrowingFile`."""
        _remove(self._path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def _size(entry: os.DirEntry[str]) -> int:
    """Of a file, in bytes; of a folder, how many files it holds; -1 for what is gone, or cannot be looked at."""
    try:
        if not entry.is_dir():
            return entry.stat().st_size
        with os.scandir(entry.path) as entries:
            return sum(1 for _ in entries)
    except OSError:
        return -1
