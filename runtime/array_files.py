"""Arrays of somebody else's `.npy` and `.npz`: what a header claims is checked before its numbers are read.

`numpy.load` takes the memory that a header asks for, waits for a pipe, and raises a dozen kinds of exceptions; an
archive of two megabytes may unpack to two gigabytes.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from commands.errors import reason
from commands.system import check_memory
from diffusion.errors import InputError
from diffusion.regular_files import open_regular

ONLY = ""
"""The name of the one array of a `.npy` file."""

# Pictures are not packed a hundredfold; below so much it does not matter.
_MAX_RATIO, _FREE_BYTES = 100, 2**27
_PART_BYTES = 2**20
_MAX_ENTRIES = 2**16
_ENCRYPTED = 1


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...
    def tell(self) -> int: ...


@dataclass(frozen=True)
class ArrayHeader:
    """What a file says of an array.

    Attributes:
        shape, dtype: of the array.
        fortran: whether its first axis varies fastest.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @property
    def num_bytes(self) -> int:
        """Of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Arrays:
    """The arrays of an open file, in which nothing was read yet but what their names are.

    Args:
        file: `.npy` or `.npz`, told apart by its content.
        size: of the file.
        where: its name in an error.
        remedy: the end of every error.
    """

    def __init__(self, file: BinaryIO, size: int, where: str, remedy: str) -> None:
        self._file, self._size, self._where, self._remedy = file, size, where, remedy
        self._entries: dict[str, zipfile.ZipInfo] = {}
        begin = file.read(len(np.lib.format.MAGIC_PREFIX))
        file.seek(0)
        self._archive = None
        if begin != np.lib.format.MAGIC_PREFIX:
            if not begin.startswith(b"PK"):
                raise self.refused("cannot be read as .npy or .npz (it begins as neither)")
            with self._readable():
                self._archive = zipfile.ZipFile(file)
                self._entries = self._checked(self._archive.infolist())

    @property
    def names(self) -> tuple[str, ...]:
        """Of the arrays; `ONLY` is that of a `.npy` file's."""
        return (ONLY,) if self._archive is None else tuple(self._entries)

    def refused(self, what: str) -> InputError:
        """The error for a file that cannot be used."""
        return InputError(f"{self._where}: {what}; {self._remedy}")

    def header(self, name: str) -> ArrayHeader:
        """What the file says of one of `names`. Raises InputError if it says it of numbers that are not there."""
        with self._stream(name) as stream:
            return self._header(name, stream)

    def read(self, name: str, check: Callable[[ArrayHeader], None] = lambda header: None) -> np.ndarray:
        """One of the arrays.

        Args:
            name: one of `names`.
            check: raises InputError for an array that is not wanted, before memory is taken for it.

        Raises:
            InputError: as `header` and `check`, a damaged file, or more than there is memory for.
        """
        with self._stream(name) as stream:
            header = self._header(name, stream)
            check(header)
            what = f"{self._where}: array {name}" if name else self._where
            check_memory(what, header.num_bytes, self._remedy)
            array = np.empty(header.num_bytes, dtype=np.uint8)
            begin = 0
            # Once more at the end: it is then that an archive's checksum is compared.
            while begin <= len(array):
                part = stream.read(min(_PART_BYTES, len(array) - begin) or 1)
                if not part or begin == len(array):
                    break
                array[begin : begin + len(part)] = np.frombuffer(part, dtype=np.uint8)
                begin += len(part)
            if begin != len(array):
                raise self.refused(f"ends after {begin} of {len(array)} bytes")
            order = header.shape[::-1] if header.fortran else header.shape
            values = array.view(header.dtype).reshape(order)
            return values.transpose() if header.fortran else values

    def _header(self, name: str, stream: _Stream) -> ArrayHeader:
        version = np.lib.format.read_magic(stream)  # type: ignore[arg-type]
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        header = ArrayHeader(*self._reordered(read(stream)))  # type: ignore[arg-type]
        what = f"array {name}" if name else "it"
        if header.dtype.hasobject:
            raise self.refused(f"{what} holds Python objects, expected numbers")
        if min(header.shape, default=0) < 0:
            raise self.refused(f"{what} has the shape {list(header.shape)}")
        there = (self._size if self._archive is None else self._entries[name].file_size) - stream.tell()
        if there < header.num_bytes or (self._archive is not None and there > header.num_bytes):
            raise self.refused(f"{what} has {there} bytes of numbers, expected {header.num_bytes} of {header}")
        packed = there if self._archive is None else self._entries[name].compress_size
        if header.num_bytes > max(_FREE_BYTES, _MAX_RATIO * packed):
            raise self.refused(
                f"{what} unpacks from {packed} bytes to {header.num_bytes}, expected at most {_MAX_RATIO} times as "
                "many: write it again with numpy.savez, which packs nothing"
            )
        return header

    @staticmethod
    def _reordered(found: tuple[tuple[int, ...], bool, np.dtype[Any]]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
        shape, fortran, dtype = found
        return shape, dtype, fortran

    @contextlib.contextmanager
    def _stream(self, name: str) -> Iterator[_Stream]:
        with self._readable():
            if self._archive is None:
                self._file.seek(0)
                yield self._file
            else:
                with self._archive.open(self._entries[name]) as stream:
                    yield stream

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # zipfile, zlib and NumPy raise whatever foreign bytes make them raise
            raise self.refused(f"cannot be read as .npy or .npz ({reason(error)})") from None

    def _checked(self, entries: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        found: dict[str, zipfile.ZipInfo] = {}
        if len(entries) > _MAX_ENTRIES:
            raise self.refused(f"holds {len(entries)} arrays, expected at most {_MAX_ENTRIES}")
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            if entry.flag_bits & _ENCRYPTED:
                raise self.refused(f"array {name} is encrypted")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise self.refused(f"array {name} is packed by method {entry.compress_type}, which NumPy does not use")
            if name in found:
                raise self.refused(f"holds two arrays named {name}")
            found[name] = entry
        claimed = sum(entry.compress_size for entry in entries)
        if claimed > self._size:
            raise self.refused(f"its arrays claim {claimed} bytes, but the file has {self._size}")
        return found


@contextlib.contextmanager
def open_arrays(path: Path, remedy: str, missing: str | None = None) -> Iterator[Arrays]:
    """The arrays of a file.

    Args:
        path: of a regular file.
        remedy, missing: as of `diffusion.regular_files.open_regular`.

    Raises:
        InputError: no such file, or neither of NumPy's formats.
    """
    with open_regular(path, remedy, missing) as file:
        yield Arrays(file, os.fstat(file.fileno()).st_size, str(path), remedy)


def arrays_of(content: bytes, where: str, remedy: str) -> Arrays:
    """The arrays of a file that was read already. Raises InputError as `open_arrays`."""
    return Arrays(io.BytesIO(content), len(content), where, remedy)
