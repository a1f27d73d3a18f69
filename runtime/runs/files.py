"""Where finished samples go: a grid, one PNG each, or an array. What is finished survives an interruption."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import numpy as np

from commands.system import gib
from commands.whole_files import cannot_write, whole_file
from diffusion.errors import InputError
from diffusion.process import SampleShape
from runtime.chain.pool import Batch
from runtime.images import by_rows, check_drawable, draw_grid, picture, quantize

FORMATS = ("grid", "png", "npz", "npy")
_PARTIAL = "samples.partial.npy"
_RESULTS = {"grid": "grid.png", "npz": "samples.npz", "npy": "samples.npy"}
# PIL refuses to read back much larger pictures, and so do most viewers.
_MAX_GRID_PIXELS = 1 << 27


class SampleWriter(Protocol):
    """Takes the samples of a run in order and leaves the files of one format."""

    def add(self, batch: Batch) -> None:
        """Keep a batch's finite samples; they are on disk when this returns."""

    def finish(self, finite: np.ndarray) -> list[Path]:
        """Publish the result; `finite`, bool [num], tells the places that hold a sample. Returns the files."""


def written_names(format_: str) -> list[str]:
    """Names of the files a format writes, as patterns."""
    return ["[0-9]*.png"] if format_ == "png" else [_RESULTS[format_], _PARTIAL]


def check_fits(format_: str, folder: Path, shape: SampleShape, num: int) -> None:
    """Find out before a folder is made that a run's samples have no place in it.

    Args:
        format_, shape, num: as `open_writer`'s.
        folder: of the run; need not exist.

    Raises:
        InputError: samples that are no pictures, a grid too large to look at, or no room on the disk.
    """
    if format_ in ("grid", "png"):
        check_drawable(shape.channels, format_)
    if format_ == "grid" and num * shape.height * shape.width > _MAX_GRID_PIXELS:
        raise InputError(
            f"--format grid: {num} images of {shape.width}x{shape.height} make more than "
            f"{_MAX_GRID_PIXELS:,} pixels; use --format png, npz or npy"
        )
    if format_ == "png":
        return
    needed = num * shape.num_elements * _dtype(format_).itemsize
    there = next((place for place in (folder, *folder.absolute().parents) if place.is_dir()), Path("/"))
    disk = shutil.disk_usage(there)
    # A file system of no size at all, such as /proc, cannot be written; that is said when it is tried.
    if disk.total and needed > disk.free:
        raise InputError(
            f"{folder}: {num} samples take {gib(needed)}, {gib(disk.free)} are free; give another --out, or a "
            "smaller --num"
        )


def _dtype(format_: str) -> np.dtype:
    return np.dtype(np.float32 if format_ == "npy" else np.uint8)


def open_writer(
    format_: str,
    folder: Path,
    shape: SampleShape,
    num: int,
    start: int,
    done: int = 0,
    broken: Collection[int] = (),
    num_classes: int = 1,
) -> SampleWriter:
    """The writer of a format.

    Args:
        format_: one of `FORMATS`; `check_fits` has seen it.
        folder: of the run, exists.
        shape: of one sample.
        num: samples of the run.
        start: sample index of the first.
        done: how many are on disk already.
        broken: places in the run, from 0, of those among them that are not, because they were not finite.
        num_classes: of a grid: n for a row for each of n classes, which samples take by turns.

    Raises:
        InputError: samples that are said to be on disk and are not, or a folder that cannot be written.
    """
    kept = [place for place in range(done) if place not in broken]
    if format_ == "png":
        return _PngWriter(folder, start, kept)
    return _ArrayWriter(format_, folder, shape, num, start, done, kept, num_classes)


class _PngWriter:
    def __init__(self, folder: Path, start: int, kept: list[int]) -> None:
        self._folder = folder
        self._start = start
        for place in kept:
            if not self._path(start + place).is_file():
                raise _nothing_to_resume(self._path(start + place), "is missing")

    def add(self, batch: Batch) -> None:
        for index, image in zip(batch.sample_indices, quantize(batch.x), strict=True):
            with whole_file(self._path(int(index))) as temporary:
                picture(image).save(temporary)

    def finish(self, finite: np.ndarray) -> list[Path]:
        return [self._path(self._start + int(place)) for place in np.flatnonzero(finite)]

    def _path(self, sample_index: int) -> Path:
        return self._folder / f"{sample_index:06d}.png"


class _ArrayWriter:
    """Keeps samples in a file that grows, so that 50,000 of them neither fill the memory nor get lost.

    They are written plainly: a write through a memory map to a full disk would end the process by a signal.
    """

    def __init__(
        self,
        format_: str,
        folder: Path,
        shape: SampleShape,
        num: int,
        start: int,
        done: int,
        kept: list[int],
        num_classes: int,
    ) -> None:
        self._format = format_
        self._num_classes = num_classes if num >= 2 * num_classes else 1
        self._start = start
        self._result = folder / _RESULTS[format_]
        self._partial = folder / _PARTIAL
        channels, height, width = shape.chw
        self._dtype = _dtype(format_)
        self._of_one = (channels, height, width) if format_ == "npy" else (height, width, channels)
        self._shape = (num, *self._of_one)
        self._sample_bytes = shape.num_elements * self._dtype.itemsize
        self._published = False
        if not done:
            self._create()
        elif self._partial.exists():
            self._begin_at = self._check_partial(kept)
        elif done == num and self._result.is_file():
            self._published = True  # a run that is finished
        else:
            raise _nothing_to_resume(self._partial, "is missing")

    def add(self, batch: Batch) -> None:
        values = batch.x if self._format == "npy" else quantize(batch.x)
        try:
            with self._partial.open("r+b", buffering=0) as file:
                for index, value in zip(batch.sample_indices.tolist(), values, strict=True):
                    _write_at(file.fileno(), self._place(index - self._start), value.tobytes())
                os.fdatasync(file.fileno())
        except OSError as error:
            raise cannot_write(self._partial, error, self._size_bytes) from error

    def finish(self, finite: np.ndarray) -> list[Path]:
        if self._published:
            return [self._result]
        self._check_partial(np.flatnonzero(finite).tolist())
        if self._format == "npy" and finite.all():
            try:
                self._partial.replace(self._result)  # no second copy of a large array
            except OSError as error:
                raise cannot_write(self._result, error) from error
            return [self._result]
        # With all samples written there is no hole in the file, which a memory map could not fill on a full disk.
        samples = np.load(self._partial, mmap_mode="r") if finite.all() else self._read(np.flatnonzero(finite).tolist())
        with whole_file(self._result) as temporary:
            if self._format == "npy":
                np.save(temporary, samples)
            elif self._format == "npz":
                np.savez(temporary, arr_0=samples)
            else:
                tiles, columns = np.asarray(samples), None
                if self._num_classes > 1:
                    rows = (self._start + np.flatnonzero(finite)) % self._num_classes
                    tiles, columns = by_rows(tiles, rows)
                draw_grid(tiles, columns).save(temporary)
        self._partial.unlink()
        return [self._result]

    def _create(self) -> None:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": self._dtype.str, "fortran_order": False, "shape": self._shape}
        )
        self._begin_at = header.tell()
        try:
            self._partial.write_bytes(header.getvalue())
        except OSError as error:
            raise cannot_write(self._partial, error, self._size_bytes) from error

    def _check_partial(self, kept: list[int]) -> int:
        """Where the samples begin in a file that is found, if it holds those at the places `kept`."""
        try:
            with self._partial.open("rb") as file:
                np.lib.format.read_magic(file)
                shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
                begin_at = file.tell()
                size = os.fstat(file.fileno()).st_size
        except (OSError, ValueError) as error:
            raise _nothing_to_resume(self._partial, f"cannot be read ({error})") from None
        if (shape, dtype, fortran_order) != (self._shape, self._dtype, False):
            raise _nothing_to_resume(self._partial, f"holds {dtype} {shape}, expected {self._dtype} {self._shape}")
        needed = begin_at + (1 + max(kept, default=-1)) * self._sample_bytes
        if size < needed:
            raise _nothing_to_resume(self._partial, f"has {size} bytes, expected at least {needed}")
        return begin_at

    def _read(self, places: list[int]) -> np.ndarray:
        samples = np.empty((len(places), *self._of_one), dtype=self._dtype)
        with self._partial.open("rb") as file:
            for sample, place in zip(samples, places, strict=True):
                file.seek(self._place(place))
                sample[...] = np.frombuffer(file.read(self._sample_bytes), dtype=self._dtype).reshape(self._of_one)
        return samples

    @property
    def _size_bytes(self) -> int:
        return self._begin_at + self._shape[0] * self._sample_bytes

    def _place(self, place: int) -> int:
        return self._begin_at + place * self._sample_bytes


def _write_at(descriptor: int, place: int, content: bytes) -> None:
    written = 0
    while written < len(content):  # a disk that is almost full takes a part
        written += os.pwrite(descriptor, content[written:], place + written)


def _nothing_to_resume(path: Path, found: str) -> InputError:
    return InputError(f"{path}: {found}, so there is nothing to resume; leave --resume out to draw the run again")
