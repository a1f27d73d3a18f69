"""The part of the data that something is measured on: held out, trained on, or all of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion.errors import InputError
from train.datasets import DataRequest, MissingSplitError, is_table, load_pictures, load_table
from train.digits import LEVELS, load_digits_split
from train.folder_listing import has_split, splits_of
from train.gray_levels import with_levels
from train.image_set import ImageSet

TEST, TRAIN, ALL = "test", "train", "all"


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
        InputError: as `train.datasets.load_data`; or no such part.
    """
    split = request.split
    name = f"{request.data}, {split or TEST}"
    if request.data == "digits":
        return Part(name, _digits(request))
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


def _digits(request: DataRequest) -> ImageSet:
    for option in ("held_out", "image_size", "image_mode", "image_column"):
        if getattr(request, option) is not None:
            raise InputError(
                f"--{option.replace('_', '-')} does not apply to digits, whose split and size are fixed; leave it out"
            )
    digits = load_digits_split()
    parts = {TRAIN: digits.train_images, TEST: digits.held_out_images}
    split = request.split or TEST
    if split not in (*parts, ALL):
        raise InputError(f"--split is {split}, expected {TEST}, {TRAIN} or {ALL} of digits")
    pixels = np.concatenate([*parts.values()]) if split == ALL else parts[split]
    images = ImageSet.from_array("digits", pixels, LEVELS)
    return images if request.levels is None else with_levels(images, request.levels)


def _cut(images: ImageSet, split: str, held_out: int | None) -> ImageSet:
    if split == ALL:
        return images
    train, test = images.split(held_out)
    if split == TRAIN:
        return train
    if test is None:
        raise InputError(f"{images.name}: holds no images out for --split test; give --split all")
    return test
