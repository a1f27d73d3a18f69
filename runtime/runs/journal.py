"""The batches of a shard that is not whole yet: a file that grows, of which a kill costs what is not in it yet."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from commands.whole_files import cannot_write
from diffusion.errors import InputError
from diffusion.json_text import parse_json
from runtime.formats.run_manifest import NonFiniteSample

_LONGEST_LINE = 1 << 20


@dataclass(frozen=True)
class KeptBatch:
    """Samples that are done.

    Attributes:
        first, end: the range of their indices.
        images: uint8 [n, H, W, C], of those that did not break.
        non_finite: the others.
    """

    first: int
    end: int
    images: np.ndarray
    non_finite: tuple[NonFiniteSample, ...]

    @property
    def indices(self) -> list[int]:
        """Of `images`."""
        broken = {sample.sample_index for sample in self.non_finite}
        return [index for index in range(self.first, self.end) if index not in broken]


class Journal:
    """Batches in the order of their indices, each with a digest: what was cut or damaged ends what is read.

    A batch is a line, its SHA-256 and a JSON object, and the bytes of its images. The digest is over both.

    Args:
        path: of the file.
        identity_sha256: of the run; batches of another one are not read.
        first: sample index that the first batch begins with.
        of_one: H, W, C.
    """

    def __init__(self, path: Path, identity_sha256: str, first: int, of_one: tuple[int, int, int]) -> None:
        self._path, self._identity_sha256, self._first, self._of_one = path, identity_sha256, first, of_one
        self._size = 0

    def read(self) -> list[KeptBatch]:
        """The batches that are whole; the next one is written after them. Raises InputError if it cannot be read."""
        try:
            with self._path.open("rb") as file:
                batches = list(self._batches(file))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{self._path}: cannot be read ({error.strerror}); remove it") from error
        return batches

    def add(self, batches: Sequence[KeptBatch]) -> None:
        """Write batches; they are on disk when this returns. Raises InputError if they cannot be written."""
        content = b"".join(self._content(batch) for batch in batches)
        if not content:
            return
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                os.ftruncate(descriptor, self._size)  # what a kill left of a batch
                self._write(descriptor, content)
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def remove(self) -> None:
        """The shard is whole, or is drawn anew. Raises InputError if the folder cannot be written."""
        self._size = 0
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def _content(self, batch: KeptBatch) -> bytes:
        images = batch.images.tobytes()
        facts = {
            "identity_sha256": self._identity_sha256,
            "first": batch.first,
            "end": batch.end,
            "non_finite": [vars(sample) for sample in batch.non_finite],
        }
        line = json.dumps(facts).encode("ascii")
        digest = hashlib.sha256(line + b"\n" + images).hexdigest().encode("ascii")
        return digest + b" " + line + b"\n" + images

    def _write(self, descriptor: int, content: bytes) -> None:
        written = 0
        while written < len(content):  # a disk that is almost full takes a part
            written += os.pwrite(descriptor, content[written:], self._size + written)
        self._size += written

    def _batches(self, file: BinaryIO) -> Iterator[KeptBatch]:
        self._size, next_index = 0, self._first
        whole = os.fstat(file.fileno()).st_size
        while (line := file.readline(_LONGEST_LINE)).endswith(b"\n"):
            try:
                digest, _, facts_text = line.rstrip(b"\n").partition(b" ")
                facts = parse_json(facts_text)
                broken = tuple(NonFiniteSample(**each) for each in facts["non_finite"])
                first, end = facts["first"], facts["end"]
                shape = (end - first - len(broken), *self._of_one)
                size = math.prod(shape)
                content = file.read(size) if 0 <= size <= whole - file.tell() else b""
            except (InputError, ValueError, TypeError, KeyError, AttributeError):
                return
            found = hashlib.sha256(facts_text + b"\n" + content).hexdigest().encode("ascii")
            if (
                len(content) != size
                or found != digest
                or first != next_index
                or facts.get("identity_sha256") != self._identity_sha256
            ):
                return
            self._size += len(line) + len(content)
            next_index = end
            yield KeptBatch(first, end, np.frombuffer(content, dtype=np.uint8).reshape(shape), broken)
