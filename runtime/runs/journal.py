"""The batches of a shard that is not whole yet: a file that grows, of which a kill costs what is not in it yet."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from diffusion.errors import InputError
from diffusion.json_text import parse_json
from runtime.formats.run_manifest import NonFiniteSample
from runtime.runs.store import GrowingFile

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
        file: that grows.
        identity_sha256: of the run; batches of another one are not read.
        first: sample index that the first batch begins with.
        of_one: H, W, C.
    """

    def __init__(self, file: GrowingFile, identity_sha256: str, first: int, of_one: tuple[int, int, int]) -> None:
        self._file, self._identity_sha256, self._first, self._of_one = file, identity_sha256, first, of_one
        self._size = 0

    def read(self) -> list[KeptBatch]:
        """The batches that are whole; the next one is written after them. Raises InputError if it cannot be read."""
        return list(self._batches(self._file.read()))

    def add(self, batches: Sequence[KeptBatch]) -> None:
        """Write batches; they are on disk when this returns. Raises InputError if they cannot be written."""
        content = b"".join(self._content(batch) for batch in batches)
        if content:
            self._file.write(content, self._size)
            self._size += len(content)

    def remove(self) -> None:
        """The shard is whole, or is drawn anew. Raises InputError if it cannot be removed."""
        self._size = 0
        self._file.remove()

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

    def _batches(self, whole: bytes) -> Iterator[KeptBatch]:
        self._size, next_index = 0, self._first
        file = io.BytesIO(whole)
        while (line := file.readline(_LONGEST_LINE)).endswith(b"\n"):
            try:
                digest, _, facts_text = line.rstrip(b"\n").partition(b" ")
                facts = parse_json(facts_text)
                broken = tuple(NonFiniteSample(**each) for each in facts["non_finite"])
                first, end = facts["first"], facts["end"]
                shape = (end - first - len(broken), *self._of_one)
                size = math.prod(shape)
                content = file.read(size) if 0 <= size <= len(whole) - file.tell() else b""
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
