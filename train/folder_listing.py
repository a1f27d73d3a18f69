"""Which files of a folder are training pictures, which split they are of, and what is left out."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion.errors import InputError
from runtime.pictures import SUFFIXES, is_picture_name

# Folder names that Hugging Face's `datasets` recognizes as splits.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
ALL = "all"
# Files of operating systems and programs. Hidden files, which begin with a dot, are skipped too.
_LITTER = frozenset(
    ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin", "lost+found",
     "system volume information", "__pycache__")
)  # fmt: skip


class MissingSplitError(InputError):
    """The data has no split of that name."""


# Of folders in folders; Python recurses a thousand times.
_MAX_DEPTH = 64


@dataclass(frozen=True)
class FolderListing:
    """What a folder holds.

    Attributes:
        pictures: in order of path.
        notes: what is used, what is not and why, a line each.
    """

    pictures: tuple[Path, ...]
    notes: tuple[str, ...]


def list_pictures(folder: Path, split: str | None = None) -> FolderListing:
    """The pictures under `folder`, its sub-folders included.

    Folders at the top that are named as splits are, `train`, `val`, `test`, are not mixed: one of them is taken. Where
    other folders beside them hold pictures too, `train` may be a class, and a split must be given. A linked folder is
    entered once, and a file that has several names is one picture.

    Args:
        folder: to be searched.
        split: `train`, `validation`, `test`, any name that `SPLITS` has for them, or `all` for all pictures. None for
            `train` where there are such folders, else for all pictures.

    Raises:
        InputError: no such split (`MissingSplitError`), no pictures, a folder that cannot be read, or a link to a
            picture that is not there.
    """
    files = list(walk_files(folder))
    found = _splits_among(folder, files)
    if split is not None and any(sign in split for sign in "[]+%"):
        raise InputError(
            f"{folder}: --split is {split!r}, but slices and sums are for Hugging Face data sets; give the name of one "
            f"split, or {ALL}"
        )
    notes: list[str] = []
    chosen = files
    if split is not None and split != ALL and not found:
        raise MissingSplitError(
            f"{folder}: has no split {split!r}, for it has no folder named train, validation or test at its top; "
            "leave --split out for all pictures"
        )
    if found and split != ALL:
        wanted = _kind(split or "train") or split or ""
        if wanted not in found:
            raise MissingSplitError(
                f"{folder}: has no split {split or 'train'!r}, found {', '.join(sorted(_names(found)))}; "
                f"choose one with --split, or --split {ALL} for all pictures"
            )
        tops = set(found[wanted])
        chosen = [path for path in files if _top(folder, path) in tops]
        others = collections.Counter(
            _top(folder, path) for path in files if is_picture_name(path) and _top(folder, path) not in tops
        )
        classes = sorted(name for name in others if name and _kind(name) is None)
        if split is None and classes:
            raise InputError(
                f"{folder}: holds {', '.join(sorted(_names(found)))}, as splits are named, and pictures in "
                f"{', '.join(classes[:3])} too; give --split {wanted} for that one, or --split {ALL} for all pictures"
            )
        given = "" if split is not None else f" (--split {wanted} is the default)"
        left = ", ".join(f"{count:,} in {name or 'the top'}" for name, count in sorted(others.items()))
        used = ", ".join(sorted(tops))
        notes.append(f"split {wanted}: pictures in {used} are used{given}, not used: {left or 'none'}")
    named = [path for path in chosen if is_picture_name(path)]
    pictures = list({_identity(path): path for path in reversed(named)}.values())
    if len(pictures) < len(named):
        notes.append(f"{len(named) - len(pictures):,} more names of the same files are left out")
    skipped = [path for path in chosen if not is_picture_name(path)]
    if skipped:
        notes.append(f"left out, no pictures by their suffix: {_by_suffix(folder, skipped)}")
    if not pictures:
        raise InputError(
            f"{folder}: found no images, expected files ending in {' '.join(SUFFIXES)} (also in subfolders)"
            + (f"; {notes[-1]}" if skipped else "")
        )
    return FolderListing(tuple(sorted(pictures)), tuple(notes))


def walk_files(folder: Path) -> Iterator[Path]:
    """Every file under `folder` that may be data, in order of name; linked folders once.

    Raises:
        InputError: a folder that cannot be read, or a link to a picture that is not there.
    """
    yield from _walk(folder, {_identity(folder)})


def has_split(folder: Path, split: str) -> bool:
    """Whether `folder` has a folder at its top that is named as `split` is."""
    return _kind(split) in splits_of(folder)


def _walk(folder: Path, entered: set[tuple[int, int]], depth: int = 0) -> Iterator[Path]:
    if depth > _MAX_DEPTH:
        raise InputError(f"{folder}: is more than {_MAX_DEPTH} folders deep; take it out of the data")
    try:
        with os.scandir(folder) as entries:
            # Splits first: of a folder and a link to it that is named as a split, the link is what is meant.
            inside = sorted(entries, key=lambda entry: (_kind(entry.name) is None, entry.name))
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be read ({error.strerror or error}); allow it, or take it out of the data"
        ) from None
    for entry in inside:
        if entry.name.startswith(".") or entry.name.lower() in _LITTER:
            continue
        path = Path(entry.path)
        if path.is_dir():
            identity = _identity(path)
            if identity not in entered:
                entered.add(identity)
                yield from _walk(path, entered, depth + 1)
        elif path.is_file():
            yield path
        elif is_picture_name(path):
            raise InputError(f"{path}: is a link to nothing, or no file; repair it, or take it out of the data")


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); take it out of the data") from None
    return status.st_dev, status.st_ino


def splits_of(folder: Path) -> dict[str, list[str]]:
    """The names of folders at the top of `folder` that are splits and hold pictures, by the kind of split.

    Raises:
        InputError: as `walk_files`.
    """
    return _splits_among(folder, walk_files(folder))


def _splits_among(folder: Path, files: Iterable[Path]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for top in sorted({_top(folder, path) for path in files if is_picture_name(path)}):
        kind = _kind(top)
        if kind is not None:
            found.setdefault(kind, []).append(top)
    return found


def _kind(name: str) -> str | None:
    return next((kind for kind, names in SPLITS.items() if name.lower() in names), None)


def _top(folder: Path, path: Path) -> str:
    """The folder at the top of `folder` that `path` is in; none for a file that lies there itself."""
    parts = path.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else ""


def _names(found: dict[str, list[str]]) -> list[str]:
    return [name for names in found.values() for name in names]


def _by_suffix(folder: Path, paths: Sequence[Path]) -> str:
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(path.suffix.lower() or "no suffix", []).append(path)
    largest = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    shown = [f"{len(group):,} {suffix} (as {group[0].relative_to(folder)})" for suffix, group in largest[:6]]
    rest = sum(len(group) for _, group in largest[6:])
    return ", ".join([*shown, *([f"{rest:,} others"] if rest else [])])
