"""What a run in shards needs of the place where it is: files by their names, each whole or not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diffusion.errors import InputError
from runtime.formats.run_manifest import RunManifest
from runtime.runs.places import ObjectUrl, Place

RUN_FILES = ("shard-[0-9]*-[0-9]*", ".shard-[0-9]*-[0-9]*")
"""What a run in shards writes beside its `run.json`, as patterns."""


class GrowingFile(Protocol):
    """A file that is written piece by piece, and of which a kill may cost the last piece.

    Attributes:
        place: of it, for errors.
    """

    place: str

    def read(self) -> bytes:
        """What is there; nothing where there is no file. Raises InputError if it cannot be read."""

    def write(self, content: bytes, at: int) -> None:
        """Write a piece after the first `at` bytes; what was behind them is dropped, or ignored by its digest.

        Raises:
            InputError: it cannot be written.
        """

    def remove(self) -> None:
        """Remove it where it is. Raises InputError if it cannot be removed."""


class Store(Protocol):
    """The files of a run in shards, in a folder or in a store of objects.

    The name of a shard is that of a file, or of a folder of pictures.
    """

    def place(self, name: str = "") -> str:
        """Where a file is, or all of them, as errors and reports say it."""

    def manifest(self) -> RunManifest | None:
        """What `run.json` says. Raises InputError as `RunManifest.read`, or if the store cannot be reached."""

    def claimed(self, identity: dict[str, Any], resume: bool, overwrite: bool) -> AbstractContextManager[None]:
        """Be one of the programs that draw this run here; others may, and any other run is kept away.

        Args:
            identity: of the run.
            resume, overwrite: as of `RunFolder.claim`.

        Raises:
            InputError: another run's samples are here, foreign files of the same names or a manifest that is not one,
                another program draws another run, or nothing can be written here.
        """

    def drawing(self, identity: dict[str, Any], shard: str, file: str) -> AbstractContextManager[None]:
        """Draw a shard; what a killed program left of it is removed, but for its journal.

        Args:
            identity: of the run, which was claimed.
            shard: its name without a suffix.
            file: its name.

        Raises:
            InputError: another program is drawing it, or nothing can be written here.
        """

    def listing(self, prefix: str) -> Mapping[str, int]:
        """The names that begin so, with sizes in bytes; of a folder of pictures, the number of its files.

        Raises:
            InputError: it cannot be read.
        """

    def read(self, names: Sequence[str]) -> Mapping[str, bytes | InputError]:
        """The contents of small files, or why one cannot be read."""

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, whole. Raises InputError if it cannot be written."""

    def remove(self, name: str) -> None:
        """Remove a small file where it is. Raises InputError if it cannot be removed."""

    def write_shard(self, file: str, format_: str, indices: Sequence[int], images: np.ndarray) -> tuple[int, str]:
        """As `runtime.runs.shard_files.write_shard`."""

    def reading(self, file: str) -> AbstractContextManager[Path]:
        """A shard's file or folder, to read. Raises InputError if it cannot be had."""

    def growing(self, name: str) -> GrowingFile:
        """A file that grows."""


def open_store(place: Place) -> Store:
    """The store of a folder or a URL; nothing is read or written yet.

    Raises:
        DeviceUnavailableError: what reaches the store is not installed.
    """
    if isinstance(place, ObjectUrl):
        from runtime.runs.object_store import ObjectStore

        return ObjectStore(place)
    from runtime.runs.folder_store import FolderStore

    return FolderStore(place)
