"""Which files of a checkpoint folder are its weights: the ones that diffusers' `from_pretrained` reads.

A folder may hold several: an old single file beside newer shards, safetensors beside a pickle, variants. diffusers
reads the shards of `….safetensors.index.json` if that file is there, else the single safetensors file, else the single
pickle, and never a variant or the shards of a pickle unless it is told to. So does this, or it refuses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from diffusion.errors import InputError
from diffusion.json_text import read_json_object

SAFETENSORS, PICKLE = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
INDEX, PICKLE_INDEX = f"{SAFETENSORS}.index.json", f"{PICKLE}.index.json"
_LFS_POINTER = b"version https://git-lfs"


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
    """The weights of a network in its folder, `unet/`.

    Raises:
        InputError: none, a pickle without permission, or an index that names no files in this folder.
    """
    for name in (INDEX, SAFETENSORS, PICKLE):
        link = folder / name
        if link.is_symlink() and not link.exists():
            raise InputError(f"{link}: is a link to {link.readlink()}, which is not there; copy the whole checkpoint")
    index = folder / INDEX
    if index.is_file():
        places = _read_index(index)
        return WeightFiles(index, tuple(folder / name for name in sorted(set(places.values()))), places)
    path = folder / SAFETENSORS
    if not path.exists():
        path = folder / PICKLE
        if not path.exists():
            raise _nothing_to_read(folder)
        if not allow_pickle:
            raise InputError(
                f"{path}: is a pickle, expected {SAFETENSORS}; save the pipeline again with "
                "safe_serialization=True, or give --allow-pickle if you trust where it comes from"
            )
    return WeightFiles(path, (path,))


def read_weight_file(path: Path) -> bytes:
    """The content of one of the files. Raises InputError where it cannot be read or is a Git LFS pointer."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy the checkpoint again") from None
    if content.startswith(_LFS_POINTER):
        raise InputError(f"{path}: is a Git LFS pointer, expected the weights; run `git lfs pull` there")
    return content


def hash_of_weights(hashes: Mapping[str, str]) -> str:
    """The SHA-256 that stands for weights: the file's own for a single one, for shards that of their names and hashes.

    Args:
        hashes: file name → SHA-256 of its bytes.
    """
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _nothing_to_read(folder: Path) -> InputError:
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        return InputError(f"{folder}: cannot be read ({error.strerror}); copy the whole checkpoint")
    expected = f"the weights in {SAFETENSORS} or in the shards of {INDEX}"
    way_out = "copy the whole checkpoint, or save it again with diffusers"
    if PICKLE_INDEX in names:
        way_out = (
            "diffusers reads the shards of a pickle with use_safetensors=False alone: load it so, and save it again "
            "with safe_serialization=True"
        )
    elif variants := _variants(names):
        way_out = (
            f"diffusers does not read a variant unless it is named: load it with variant={variants[0]!r} and save it "
            "again, or rename the file"
        )
    return InputError(f"{folder}: found {', '.join(names) or 'nothing'}, expected {expected}; {way_out}")


def _variants(names: Iterable[str]) -> list[str]:
    """What stands between the stem and the suffix of weights, such as fp16."""
    stem = SAFETENSORS.partition(".")[0] + "."
    parts = [name.removeprefix(stem).split(".") for name in names if name.startswith(stem)]
    return [part[0] for part in parts if len(part) > 1 and part[0] not in ("safetensors", "bin")]


def _read_index(path: Path) -> dict[str, str]:
    again = "copy the whole checkpoint, or save it again with diffusers"
    places = read_json_object(path, again).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"{path}: has no weight_map of tensors and file names; {again}")
    for name in sorted(set(places.values())):
        if name in ("", ".", "..") or PurePosixPath(name).name != name or "\\" in name or "\0" in name:
            raise InputError(f"{path}: names the file {name!r}, expected files in its own folder; {again}")
        if not name.endswith(".safetensors"):
            raise InputError(f"{path}: names the file {name!r}, expected shards that end in .safetensors; {again}")
        if not (path.parent / name).is_file():
            raise InputError(f"{path}: names the file {name!r}, which is not there; {again}")
    return places
