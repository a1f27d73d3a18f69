"""Which files of a checkpoint folder are its weights: the ones that diffusers' `from_pretrained` reads.

A folder may hold several: an old single file beside newer shards, safetensors beside a pickle, variants. diffusers
reads the shards of `….safetensors.index.json` if that file is there, else the single safetensors file, else the single
pickle. Where there is none of them it reads what it is told to: the shards of a pickle, or a variant. That is read here
too if there is no more than one to choose from.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from commands.system import check_memory
from diffusion.errors import InputError
from diffusion.json_text import read_json_object
from diffusion.regular_files import open_regular, unreadable

SAFETENSORS, PICKLE = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
INDEX, PICKLE_INDEX = f"{SAFETENSORS}.index.json", f"{PICKLE}.index.json"
_LFS_POINTER = b"version https://git-lfs"
# How what torch.save writes begins: a zip archive, or before PyTorch 1.6 a pickle of protocol 2 or later.
_PICKLES = (b"PK", b"\x80")
_LENGTH_BYTES = 8  # of the header, before it
_MAX_HEADER_BYTES = 10**8  # which safetensors itself takes
# Names of a variant, in the order in which diffusers looks for them; the second is the shards' older name.
_OF_VARIANT = (
    r"diffusion_pytorch_model\.safetensors\.index\.([^.]+)\.json",
    r"diffusion_pytorch_model\.safetensors\.([^.]+)\.index\.json",
    r"diffusion_pytorch_model\.([^.]+)\.safetensors",
    r"diffusion_pytorch_model\.([^.]+)\.bin",
    r"diffusion_pytorch_model\.bin\.index\.([^.]+)\.json",
)
_SHARD = re.compile(r".*-\d{5}-of-\d{5}")
_AGAIN = "copy the whole checkpoint, or save it again with diffusers"


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a checkpoint's weights.

    Attributes:
        source: what to call them in an error: the single file, or the index of the shards.
        paths: the files, by name.
        places: for shards, the file name of every tensor; None for a single file.
    """

    source: Path
    paths: tuple[Path, ...]
    places: Mapping[str, str] | None = None


def find_weights(folder: Path, allow_pickle: bool) -> WeightFiles:
    """The weights of a network in its folder, which is `unet/` in most pipelines.

    Raises:
        InputError: none, several of which diffusers would choose none, a pickle without permission, or an index that
            names no files in this folder.
    """
    for name in (INDEX, SAFETENSORS, PICKLE):
        path = folder / name
        if path.is_symlink() and not path.exists():
            raise InputError(f"{path}: is a link to {path.readlink()}, which is not there; copy the whole checkpoint")
        if path.exists():
            return _weight_files(path, allow_pickle)
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); copy the whole checkpoint") from None
    told = [*([PICKLE_INDEX] if PICKLE_INDEX in names else []), *_variants(names).values()]
    if len(told) == 1:
        return _weight_files(folder / told[0], allow_pickle)
    found = ", ".join(told or names) or "nothing"
    way_out = "leave the one that is meant, or rename it" if told else _AGAIN
    raise InputError(
        f"{folder}: found {found}, expected the weights in {SAFETENSORS} or in the shards of {INDEX}; {way_out}"
    )


def read_weight_file(path: Path, remedy: str = "copy the checkpoint again") -> bytes:
    """The content of one of the files.

    Args:
        path: of the file.
        remedy: the end of the line for one that cannot be used.

    Raises:
        InputError: it cannot be read, is a Git LFS pointer or begins as neither safetensors nor a pickle do, or there
            is no memory for it and the tensors that are made of it.
    """
    with open_regular(path, remedy) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            begin = file.read(len(_LFS_POINTER))
            _check_begin(path, begin, size, remedy)
            check_memory(f"{path}: the file and its tensors", 2 * size, "use a machine with more")
            return begin + file.read()
        except OSError as error:
            raise unreadable(path, error, remedy) from None


def _check_begin(path: Path, begin: bytes, size: int, remedy: str) -> None:
    """Before a large file is read. Raises InputError for what is no file of tensors."""
    if begin == _LFS_POINTER:
        raise InputError(f"{path}: is a Git LFS pointer, expected the weights; run `git lfs pull` there")
    if path.suffix == ".safetensors":
        if size <= _LENGTH_BYTES:
            raise InputError(
                f"{path}: truncated: found {size} bytes, expected a header of more than {_LENGTH_BYTES}; {remedy}"
            )
        header = int.from_bytes(begin[:_LENGTH_BYTES], "little")
        if begin[_LENGTH_BYTES:][:1] != b"{" or header > _MAX_HEADER_BYTES:
            raise InputError(f"{path}: not a safetensors file, found {size} bytes that begin otherwise; {remedy}")
    elif not begin.startswith(_PICKLES):
        raise InputError(
            f"{path}: found {size} bytes that begin with {begin[:4]!r}, expected a file that torch.save wrote; {remedy}"
        )


def hash_of_weights(hashes: Mapping[str, str]) -> str:
    """The SHA-256 that stands for weights: the file's own for a single one, for shards that of their names and hashes.

    Args:
        hashes: file name → SHA-256 of its bytes.
    """
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _weight_files(path: Path, allow_pickle: bool) -> WeightFiles:
    sharded, is_pickle = path.suffix == ".json", ".bin" in path.suffixes
    if is_pickle and not allow_pickle:
        what = "names shards that are pickles" if sharded else "is a pickle"
        raise InputError(
            f"{path}: {what}, expected {SAFETENSORS}; save the pipeline again with "
            "safe_serialization=True, or give `allow_pickle=True` if you trust where it comes from"
        )
    if not sharded:
        return WeightFiles(path, (path,))
    places = _read_index(path, ".bin" if is_pickle else ".safetensors")
    return WeightFiles(path, tuple(path.parent / name for name in sorted(set(places.values()))), places)


def _variants(names: Iterable[str]) -> dict[str, str]:
    """Variant, such as fp16 → the file that diffusers would read if it were told that name."""
    found: dict[str, str] = {}
    for pattern in _OF_VARIANT:
        for name in names:
            match = re.fullmatch(pattern, name)
            if match and not _SHARD.fullmatch(match[1]):
                found.setdefault(match[1], name)
    return found


def _read_index(path: Path, suffix: str) -> dict[str, str]:
    places = read_json_object(path, _AGAIN).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"{path}: has no weight_map of tensors and file names; {_AGAIN}")
    for name in sorted(set(places.values())):
        if name in ("", ".", "..") or PurePosixPath(name).name != name or "\\" in name or "\0" in name:
            raise InputError(f"{path}: names the file {name!r}, expected files in its own folder; {_AGAIN}")
        if not name.endswith(suffix):
            raise InputError(f"{path}: names the file {name!r}, expected shards that end in {suffix}; {_AGAIN}")
        if not (path.parent / name).is_file():
            raise InputError(f"{path}: names the file {name!r}, which is not there; {_AGAIN}")
    return places
