"""Training images from a Hugging Face data set: a name on the hub, or a local folder `datasets` can load."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusion.errors import InputError
from diffusion.process import SampleShape
from train.image_folder import MAX_DECODED_BYTES
from train.image_set import ImageSet
from train.image_size import MODES, check_mode, fit_image

# What `save_to_disk` leaves in a folder.
_SAVED_MARKS = ("dataset_dict.json", "state.json", "dataset_info.json")


def is_saved_dataset(folder: Path) -> bool:
    """Whether `folder` was written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    return any((folder / mark).is_file() for mark in _SAVED_MARKS)


def load_hugging_face(
    name: str,
    split: str = "train",
    image_column: str | None = None,
    image_size: int | None = None,
    image_mode: str | None = None,
) -> ImageSet:
    """The images of one split of a data set.

    Args:
        name: on the hub, or a local folder.
        split: as `datasets` names it; slices like `train[:100]` work for what `load_dataset` loads.
        image_column: where the images are; None to find it.
        image_size, image_mode: as in `load_image_folder`.

    Raises:
        InputError: the data set, the split or the column is not there, or images differ in size or mode.
    """
    table = _load(name, split)
    column = _find_column(name, table, image_column)
    where = f"{name} ({split})"
    if not len(table):
        raise InputError(f"{where}: holds no images, expected at least one")
    table = table.select_columns([column])
    lock = threading.Lock()  # a data set's formatting state is not made for several threads

    def decode(index: int) -> np.ndarray:
        try:
            with lock:
                image = table[index][column]
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{where}: image {index} in column {column!r} cannot be read ({error})") from None
        if not isinstance(image, Image.Image):
            raise InputError(f"{where}: row {index} of column {column!r} holds no image")
        if image_size is None and image.size != size:
            raise InputError(
                f"{where}: image 0 is {size[0]}×{size[1]} pixels, image {index} is {image.size[0]}×{image.size[1]}; "
                "expected one size: scale and crop to N×N with --image-size N"
            )
        if check_mode(image.mode, image_mode, f"{where}, image {index}") != mode:
            raise InputError(
                f"{where}: image 0 has mode {mode}, image {index} has mode {image.mode}; expected one mode: "
                "convert with --image-mode L or RGB"
            )
        return fit_image(image, image_size, mode)

    try:
        first = table[0][column]
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{where}: image 0 in column {column!r} cannot be read ({error})") from None
    if not isinstance(first, Image.Image):
        raise InputError(f"{where}: column {column!r} holds {type(first).__name__}, expected images")
    size, mode = first.size, check_mode(first.mode, image_mode, f"{where}, image 0")
    width, height = (image_size, image_size) if image_size is not None else size
    shape = SampleShape(MODES[mode], height, width)
    label = f"data set {where}"
    if len(table) * shape.num_elements <= MAX_DECODED_BYTES:
        pixels = np.empty((len(table), *shape.chw), dtype=np.uint8)
        for index in range(len(table)):
            pixels[index] = decode(index)
        return ImageSet.from_array(label, pixels)
    # datasets' own fingerprint follows from the files and every operation on them.
    return ImageSet(label, shape, len(table), decode, f"{table._fingerprint} {shape} {mode}")


def _load(name: str, split: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    if Path(name).is_dir() and is_saved_dataset(Path(name)):
        return _load_saved(name, split)
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises its own, pyarrow's, fsspec's and the hub's
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"--data {name}: cannot be loaded as a Hugging Face data set, split {split} ({reason}); "
            "give an existing folder of images, an .npz file, a local data set, or a name that can be downloaded "
            f"from here{_offline_hint()}"
        ) from None


def _load_saved(folder: str, split: str) -> Any:
    import datasets

    try:
        saved = datasets.load_from_disk(folder)
    except Exception as error:  # as above
        raise InputError(f"{folder}: cannot be loaded as a saved data set ({' '.join(str(error).split())})") from None
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise InputError(f"{folder}: has no split {split!r}, found {', '.join(saved)}; choose one with --split")
        return saved[split]
    return saved


def _find_column(name: str, table: Any, image_column: str | None) -> str:
    import datasets

    columns = list(table.column_names)
    if image_column is not None:
        if image_column not in columns:
            raise InputError(f"{name}: has no column {image_column!r}, found {', '.join(columns)}")
        return image_column
    images = [column for column, feature in table.features.items() if isinstance(feature, datasets.Image)]
    if len(images) == 1:
        return str(images[0])
    found = (
        f"{len(images)} image columns ({', '.join(images)})" if images else f"no image column in {', '.join(columns)}"
    )
    raise InputError(f"{name}: found {found}, expected one; choose with --image-column")


def _offline_hint() -> str:
    offline = [
        key for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") if os.environ.get(key) in ("1", "ON", "YES", "TRUE")
    ]
    return f" ({offline[0]} is set)" if offline else ""
