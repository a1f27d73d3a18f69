"""From what `--data` says to images: those to train on, those held out, or a part to measure on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion.errors import InputError
from runtime.pictures import is_picture_name
from train.digits import BUNDLED
from train.folder_listing import MissingSplitError, has_split, splits_of, walk_files
from train.image_set import ImageSet, with_levels
from train.labels import Labels

_IMAGE_OPTIONS = ("image_size", "image_mode")
_TABLE_OPTIONS = ("split", "image_column", "class_column")
_ARRAYS = (".npz", ".npy")
_TABLES = (".parquet", ".arrow", ".tar")
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TEST, TRAIN, ALL = "test", "train", "all"


@dataclass(frozen=True)
class DataRequest:
    """What a user said about the data.

    Attributes:
        data: `digits` or `mnist`, a folder of images, an .npz or .npy file, or a Hugging Face data set (a name or a
            folder).
        split: of a Hugging Face data set, or of a folder of images with sub-folders named so.
        image_column: of a Hugging Face data set.
        image_size, image_mode: see `train.image_folder.load_image_folder`.
        levels: gray levels of the data; None for 256, or those that it is known to have.
        held_out: how many images to hold out; None for the data's own held-out part, or one in twenty.
        held_out_split: the split of a Hugging Face data set that is its own held-out part.
        classes: whether each image has a class: of digits their own, else its sub-folder's, the array `labels` of an
            .npz file, or the column of a Hugging Face data set; None where it has none.
        class_column: of a Hugging Face data set; None for the only one of labels.
    """

    data: str
    split: str | None = None
    image_column: str | None = None
    image_size: int | None = None
    image_mode: str | None = None
    levels: int | None = None
    held_out: int | None = None
    held_out_split: str | None = None
    classes: bool | None = None
    class_column: str | None = None


def load_data(request: DataRequest) -> tuple[ImageSet, ImageSet | None]:
    """The images to train on, and those held out (None where there are none).

    Raises:
        InputError: the data is not there, is of an unknown kind, cannot be read, or an option does not apply to it.
    """
    if request.data in BUNDLED:
        return _load_bundled(request)
    if is_table(request):
        return _from_hugging_face(request)
    return load_pictures(request).split(request.held_out)


def _load_bundled(request: DataRequest) -> tuple[ImageSet, ImageSet | None]:
    name = request.data
    _refuse(request, name, *_IMAGE_OPTIONS, *_TABLE_OPTIONS)
    split = BUNDLED[name]()
    train = _leveled(ImageSet.from_array(name, split.train_images, split.levels), request)
    held_out = _leveled(ImageSet.from_array(name, split.held_out_images, split.levels), request)
    if request.classes:
        train = train.with_labels(Labels.from_numbers(split.train_labels, name))
        held_out = held_out.with_labels(Labels.from_numbers(split.held_out_labels, name))
    if request.held_out is None:
        return train, held_out
    if request.held_out > held_out.num_images:
        raise InputError(f"--held-out is {request.held_out}, but {name} has {held_out.num_images} held-out images")
    return train, held_out.subset(range(request.held_out)) if request.held_out else None


def load_pictures(request: DataRequest) -> ImageSet:
    """All images of a folder or a file, before any are held out.

    Raises:
        InputError: as `load_data`.
    """
    path = Path(request.data)
    if path.suffix in _ARRAYS:
        from train.npz_images import load_npy, load_npz

        _refuse(request, f"an {path.suffix} file", *_IMAGE_OPTIONS, *_TABLE_OPTIONS)
        images = load_npz(path, bool(request.classes)) if path.suffix == ".npz" else load_npy(path)
        if request.classes and images.labels is None:
            raise InputError(f"--data {request.data}: an .npy file has no classes; give an .npz file with `labels`")
        return _leveled(images, request)
    from train.image_folder import load_image_folder

    _refuse(request, "a folder of images", "image_column", "class_column")
    images = load_image_folder(path, request.image_size, request.image_mode, request.split, bool(request.classes))
    return _leveled(images, request)


def load_table(request: DataRequest, split: str | None) -> ImageSet:
    """One split of what `is_table`. Raises InputError as `load_data`."""
    from train.hugging_face import load_hugging_face

    images = load_hugging_face(
        request.data,
        split,
        request.image_column,
        request.image_size,
        request.image_mode,
        bool(request.classes),
        request.class_column,
    )
    return _leveled(images, request)


def is_table(request: DataRequest) -> bool:
    """Whether the data is read by Hugging Face's `datasets`: anything but a folder of pictures or a file.

    Raises:
        InputError: a file of an unknown kind, a path that is not there, or a folder of pictures and of tables.
    """
    path = Path(request.data)
    if path.suffix in _ARRAYS:
        return False
    if path.is_dir():
        return not _is_image_folder(path)
    if path.exists():
        raise InputError(
            f"--data {request.data}: found a file, expected digits, mnist, a folder of images, an .npz or .npy file, "
            "or a Hugging Face data set"
        )
    in_a_file = len(path.parts) == 2 and path.parent.is_file()  # no owner of a data set, though it looks like one
    if path.is_absolute() or request.data.startswith((".", "~")) or len(path.parts) > 2 or in_a_file:
        raise InputError(
            f"--data {request.data}: no such folder; expected digits, mnist, a folder of images, an .npz or .npy file, "
            "or a Hugging Face data set"
        )
    return True


def _is_image_folder(folder: Path) -> bool:
    from train.hugging_face import is_saved_dataset

    if is_saved_dataset(folder):
        return False
    files = list(walk_files(folder))
    pictures = sum(is_picture_name(file) for file in files)
    listed = [file for file in files if file.name.lower() in _METADATA]
    tables = [file for file in files if file.suffix.lower() in _TABLES and file not in listed]
    if pictures and tables:
        raise InputError(
            f"--data {folder}: holds {pictures:,} pictures and {len(tables):,} tables (as "
            f"{tables[0].relative_to(folder)}), expected one or the other; give the folder that holds the one alone"
        )
    if pictures:
        return not listed  # what a metadata file says of pictures is for `datasets` to read
    return not tables and not any(file.suffix.lower() in (".csv", ".jsonl", ".json") for file in files)


def _leveled(images: ImageSet, request: DataRequest) -> ImageSet:
    return images if request.levels is None else with_levels(images, request.levels)


def _from_hugging_face(request: DataRequest) -> tuple[ImageSet, ImageSet | None]:
    train = load_table(request, request.split)
    if request.held_out_split is None:
        return train.split(request.held_out)
    held_out = load_table(request, request.held_out_split)
    if held_out.shape != train.shape:
        raise InputError(f"{held_out.name}: images are {held_out.shape.chw}, those to train on {train.shape.chw}")
    if train.labels is not None and held_out.labels is not None and held_out.labels.names != train.labels.names:
        raise InputError(f"{held_out.name}: has other classes than {train.name}; expected the same; give --held-out N")
    return train, held_out


def _refuse(request: DataRequest, kind: str, *options: str) -> None:
    for option in options:
        if getattr(request, option) is not None:
            flag = "classes COLUMN" if option == "class_column" else option.replace("_", "-")
            raise InputError(f"--{flag} does not apply to {kind}; leave it out")


class Part(NamedTuple):
    """Images, and what to call them in a report."""

    name: str
    images: ImageSet


def load_part(request: DataRequest) -> Part:
    """The images that `request.split` names.

    Data without splits of its own is cut as `train.run` cuts it: `test`, the default, is what it holds out, `train`
    what it trains on, `all` both. Of data that has splits of its own, a Hugging Face data set or a folder with
    sub-folders named so, the split of that name is taken whole; by default its `test`, and where there is none, what
    `train.run` holds out.

    Raises:
        InputError: as `load_data`; or no such part.
    """
    split = request.split
    name = f"{request.data}, {split or TEST}"
    if request.data in BUNDLED:
        return Part(name, _part_of_bundled(request))
    if is_table(request):
        if split is not None:
            return Part(name, load_table(request, split))
        try:
            return Part(name, load_table(request, TEST))
        except MissingSplitError:
            return Part(f"{request.data}, held out of train", _cut(load_table(request, None), TEST, request.held_out))
    folder = Path(request.data)
    if folder.is_dir() and splits_of(folder):
        if split is not None:
            return Part(name, load_pictures(request))
        if has_split(folder, TEST):
            return Part(name, load_pictures(dataclasses.replace(request, split=TEST)))
        return Part(f"{request.data}, held out of train", _cut(load_pictures(request), TEST, request.held_out))
    if split not in (None, TEST, TRAIN, ALL):
        raise InputError(
            f"--split is {split}, but {request.data} has no splits of its own; expected {TEST}, what train.run holds "
            f"out, {TRAIN} or {ALL}"
        )
    return Part(name, _cut(load_pictures(dataclasses.replace(request, split=None)), split or TEST, request.held_out))


def _part_of_bundled(request: DataRequest) -> ImageSet:
    name = request.data
    for option in ("held_out", "image_size", "image_mode", "image_column"):
        if getattr(request, option) is not None:
            raise InputError(
                f"--{option.replace('_', '-')} does not apply to {name}, whose split and size are fixed; leave it out"
            )
    digits = BUNDLED[name]()
    parts = {TRAIN: digits.train_images, TEST: digits.held_out_images}
    split = request.split or TEST
    if split not in (*parts, ALL):
        raise InputError(f"--split is {split}, expected {TEST}, {TRAIN} or {ALL} of {name}")
    pixels = np.concatenate([*parts.values()]) if split == ALL else parts[split]
    return _leveled(ImageSet.from_array(name, pixels, digits.levels), request)


def _cut(images: ImageSet, split: str, held_out: int | None) -> ImageSet:
    if split == ALL:
        return images
    train, test = images.split(held_out)
    if split == TRAIN:
        return train
    if test is None:
        raise InputError(f"{images.name}: holds no images out for --split test; give --split all")
    return test
