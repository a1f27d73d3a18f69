"""Where finished samples go: a grid, one PNG each, or an array. What is finished survives an interruption."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol

import numpy as np

from commands.whole_files import whole_file
from diffusion.errors import InputError
from diffusion.process import SampleShape
from runtime.images import check_drawable, draw_grid, picture, quantize
from runtime.sampler import Batch

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


def open_writer(format_: str, folder: Path, shape: SampleShape, num: int, start: int, done: int) -> SampleWriter:
    """The writer of a format.

    Args:
        format_: one of `FORMATS`.
        folder: of the run, exists.
        shape: of one sample.
        num: samples of the run.
        start: sample index of the first.
        done: how many are on disk already.

    Raises:
        InputError: samples that are no pictures, a grid too large to look at, or no room on the disk.
    """
    if format_ in ("grid", "png"):
        check_drawable(shape.channels, format_)
    if format_ == "png":
        return _PngWriter(folder, start)
    if format_ == "grid" and num * shape.height * shape.width > _MAX_GRID_PIXELS:
        raise InputError(
            f"--format grid: {num} images of {shape.width}x{shape.height} make more than "
            f"{_MAX_GRID_PIXELS:,} pixels; use --format png, npz or npy"
        )
    return _ArrayWriter(format_, folder, shape, num, start, done)


class _PngWriter:
    def __init__(self, folder: Path, start: int) -> None:
        self._folder = folder
        self._start = start

    def add(self, batch: Batch) -> None:
        for index, image in zip(batch.sample_indices, quantize(batch.x), strict=True):
            with whole_file(self._path(int(index))) as temporary:
                picture(image).save(temporary)

    def finish(self, finite: np.ndarray) -> list[Path]:
        return [self._path(self._start + int(place)) for place in np.flatnonzero(finite)]

    def _path(self, sample_index: int) -> Path:
        return self._folder / f"{sample_index:06d}.png"


class _ArrayWriter:
    """Keeps samples in a memory-mapped file, so that 50,000 of them neither fill the memory nor get lost."""

    def __init__(self, format_: str, folder: Path, shape: SampleShape, num: int, start: int, done: int) -> None:
        self._format = format_
        self._start = start
        self._folder = folder
        self._partial = folder / _PARTIAL
        channels, height, width = shape.chw
        dtype: type = np.float32 if format_ == "npy" else np.uint8
        of_one = (channels, height, width) if format_ == "npy" else (height, width, channels)
        if done and self._partial.exists():
            self._array = np.lib.format.open_memmap(self._partial, mode="r+")
            if self._array.shape != (num, *of_one) or self._array.dtype != dtype:
                raise InputError(f"{self._partial}: has shape {self._array.shape}, expected {(num, *of_one)}")
            return
        if done:
            raise InputError(f"{self._partial}: is missing, so there is nothing to resume; leave --resume out")
        size_bytes = num * shape.num_elements * np.dtype(dtype).itemsize
        free_bytes = shutil.disk_usage(folder).free
        if size_bytes > free_bytes:
            raise InputError(
                f"{folder}: {num} samples take {size_bytes / 2**30:.1f} GiB, {free_bytes / 2**30:.1f} GiB are free; "
                "give another --out, or a smaller --num"
            )
        self._array = np.lib.format.open_memmap(self._partial, mode="w+", dtype=dtype, shape=(num, *of_one))

    def add(self, batch: Batch) -> None:
        values = batch.x if self._format == "npy" else quantize(batch.x)
        for index, value in zip(batch.sample_indices.tolist(), values, strict=True):
            self._array[index - self._start] = value
        self._array.flush()

    def finish(self, finite: np.ndarray) -> list[Path]:
        result = self._folder / _RESULTS[self._format]
        if self._format == "npy" and finite.all():
            self._array.flush()
            self._partial.replace(result)  # no second copy of a large array
            return [result]
        with whole_file(result) as temporary:
            # An array without the broken samples only where there are any: indexing copies.
            samples = self._array if finite.all() else self._array[finite]
            if self._format == "npy":
                np.save(temporary, samples)
            elif self._format == "npz":
                np.savez(temporary, arr_0=samples)
            else:
                draw_grid(np.asarray(samples)).save(temporary)
        self._partial.unlink()
        return [result]
