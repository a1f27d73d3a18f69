"""The samples of a shard as a file: an array, pictures in a folder, or a WebDataset archive; and back."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from commands.whole_files import whole_file, whole_folder
from diffusion.errors import InputError
from diffusion.process import SampleShape
from diffusion.regular_files import open_regular
from runtime.array_files import open_arrays
from runtime.arrays import UNREADABLE
from runtime.formats.shard_record import ShardRecord
from runtime.images import check_drawable, picture
from runtime.runs.shards import Shard

SHARD_FORMATS = ("npz", "png", "tar")
_SUFFIX = {"npz": ".npz", "png": "", "tar": ".tar"}
_READ_BYTES = 1 << 20
_AGAIN = "--resume --verify draws it again"


def check_shard_format(format_: str, shape: SampleShape) -> None:
    """Raises InputError for a format that shards are not written in, or samples that are no pictures."""
    if format_ not in SHARD_FORMATS:
        raise InputError(
            f"--format {format_}: shards are npz, png or tar; give one of these, or leave --shard-size, --shard, "
            "--workers and --devices out, and give a folder as --out"
        )
    if format_ != "npz":
        check_drawable(shape.channels, format_)


def file_name(shard: Shard, format_: str) -> str:
    """Of a shard's file, or of its folder of pictures."""
    return shard.name + _SUFFIX[format_]


def picture_name(sample_index: int) -> str:
    """Of one sample: WebDataset takes what stands before the dot for its key."""
    return f"{sample_index:09d}.png"


def write_shard(path: Path, format_: str, indices: Sequence[int], images: np.ndarray) -> tuple[int, str]:
    """Write the samples of a shard, whole or not at all; equal samples make equal bytes.

    Args:
        path: of the file or folder.
        format_: one of `SHARD_FORMATS`.
        indices: n, of the samples.
        images: uint8 [n, H, W, C].

    Returns:
        as `content_facts`.

    Raises:
        InputError: it cannot be written.
    """
    if format_ == "png":
        with whole_folder(path) as folder:
            for index, image in zip(indices, images, strict=True):
                (folder / picture_name(index)).write_bytes(_png_bytes(image))
            return content_facts(folder)
    with whole_file(path) as temporary:
        if format_ == "npz":
            np.savez(temporary, arr_0=images)
        else:
            with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
                for index, image in zip(indices, images, strict=True):
                    content = _png_bytes(image)
                    member = tarfile.TarInfo(picture_name(index))
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        return content_facts(temporary)


def content_facts(path: Path) -> tuple[int, str]:
    """The size in bytes and the SHA-256 of a file; of a folder, those of its files in the order of their names.

    In a folder each file counts as its name, a zero byte, its size in eight bytes and its content.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    if not path.is_dir():
        return _add_content(digest, path), digest.hexdigest()
    size = 0
    for each in sorted(path.iterdir()):
        digest.update(os.fsencode(each.name) + b"\0" + each.stat().st_size.to_bytes(8, "little"))
        size += _add_content(digest, each)
    return size, digest.hexdigest()


def kept_indices(shard: Shard, record: ShardRecord) -> list[int]:
    """Of the samples that are in a shard's file."""
    broken = {sample.sample_index for sample in record.non_finite}
    return [index for index in range(shard.first, shard.end) if index not in broken]


def shard_shape(path: Path, format_: str, indices: Sequence[int]) -> SampleShape:
    """The shape of the samples in a shard that holds some. Raises InputError as `read_shard`."""
    height, width, channels = _read(path, format_, indices[:1]).shape[1:]
    return SampleShape(channels, height, width)


def read_shard(path: Path, format_: str, indices: Sequence[int], shape: SampleShape) -> np.ndarray:
    """The samples of a shard.

    Args:
        path, format_: as `write_shard`.
        indices: n, of the samples that it holds.
        shape: of one sample.

    Returns:
        uint8 [n, H, W, C].

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    images = _read(path, format_, indices)
    expected = (len(indices), shape.height, shape.width, shape.channels)
    if images.shape != expected:
        raise InputError(
            f"{path}: holds {list(images.shape)}, expected uint8 {list(expected)}; --resume --verify draws it again"
        )
    return images


def _read(path: Path, format_: str, indices: Sequence[int]) -> np.ndarray:
    try:
        if format_ == "npz":
            with open_arrays(path, _AGAIN) as arrays:
                if arrays.names != ("arr_0",):
                    raise arrays.refused(f"holds the arrays {', '.join(arrays.names[:5])}, expected arr_0")
                images = arrays.read("arr_0")
        elif format_ == "png":
            images = np.stack([_read_file(path / picture_name(index)) for index in indices])
        else:
            with open_regular(path, _AGAIN) as file, tarfile.open(fileobj=file, mode="r:") as archive:
                members = [archive.extractfile(picture_name(index)) for index in indices]
                images = np.stack([_read_picture(io.BytesIO(member.read())) for member in members if member])
    except InputError:
        raise
    except (*UNREADABLE, tarfile.TarError, Image.DecompressionBombError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be read ({error}); --resume --verify draws it again") from None
    if images.dtype != np.uint8 or images.ndim != 4:
        raise InputError(
            f"{path}: holds {images.dtype} of {images.ndim} axes, expected uint8 [N, H, W, C]; "
            "--resume --verify draws it again"
        )
    return images


def _png_bytes(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    picture(image).save(stream, "png")
    return stream.getvalue()


def _read_file(path: Path) -> np.ndarray:
    with open_regular(path, _AGAIN) as file:
        return _read_picture(file)


def _read_picture(source: BinaryIO) -> np.ndarray:
    with Image.open(source, formats=["PNG"]) as image:
        pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _add_content(digest: hashlib._Hash, path: Path) -> int:
    size = 0
    with open_regular(path, "--resume draws it again") as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
            size += len(part)
    return size
