"""Training images from a Hugging Face data set: a name on the hub, or a local folder `datasets` can load."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from commands.errors import reason
from commands.progress import progress_bar
from diffusion.errors import InputError
from diffusion.process import SampleShape
from runtime.pictures import MODES, check_mode, read_picture, read_picture_header
from train.folder_listing import MissingSplitError
from train.image_folder import MAX_DECODED_BYTES, fit_image, max_pixels
from train.image_set import ImageSet
from train.labels import labels_of_column

# What `save_to_disk` leaves in a folder.
_SAVED_MARKS = ("dataset_dict.json", "state.json", "dataset_info.json")
DEFAULT_SPLIT = "train"


# Names that `datasets` takes for one of its file readers.
_PACKAGED = (
    "csv", "json", "pandas", "parquet", "arrow", "text", "imagefolder", "audiofolder", "videofolder", "pdffolder",
    "webdataset", "xml", "hdf5", "sql", "spark", "generator", "cache", "niftifolder", "lance", "iceberg", "eval",
)  # fmt: skip
_UNKNOWN_SPLIT = "Unknown split"  # how the error of `datasets` begins


def is_saved_dataset(folder: Path) -> bool:
    """Whether `folder` was written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    return any((folder / mark).is_file() for mark in _SAVED_MARKS)


def load_hugging_face(
    name: str,
    split: str | None = None,
    image_column: str | None = None,
    image_size: int | None = None,
    image_mode: str | None = None,
    classes: bool = False,
    class_column: str | None = None,
) -> ImageSet:
    """The images of one split of a data set, each read as a file of its own would be.

    Args:
        name: on the hub, or a local folder.
        split: as `datasets` names it, slices like `train[:100]` included; None for `train`, or for the whole of a
            saved table that is no part of a dictionary.
        image_column: where the images are; None to find it.
        image_size, image_mode: as in `load_image_folder`.
        classes, class_column: whether each image has a class, and which column says it.

    Raises:
        InputError: the data set, the split or the column is not there, or images differ in size or mode.
    """
    import datasets

    table = _load(name, split)
    column = _find_column(name, table, image_column)
    where = f"{name} ({table.split or split or 'whole table'})"
    if not len(table):
        raise InputError(f"{where}: holds no images, expected at least one")
    feature = table.features[column]
    if not isinstance(feature, datasets.Image):
        found = type(table[0][column]).__name__
        raise InputError(f"{where}: column {column!r} holds {found}, expected images; cast it to datasets.Image")
    labels = labels_of_column(table, class_column, where) if classes else None
    if image_mode is None and feature.mode in MODES:
        image_mode = feature.mode
    # The stored bytes: a decoded image has lost its format, and with it the meaning of its numbers.
    table = table.select_columns([column]).cast_column(column, datasets.Image(decode=False)).with_format(None)
    lock = threading.Lock()  # a data set's formatting state is not made for several threads

    def stored(index: int) -> tuple[Path | io.BytesIO, str]:
        label = f"{where}, image {index}"
        try:
            with lock:
                value = table[index][column]
        except Exception as error:  # the library raises its own, pyarrow's and fsspec's
            raise InputError(f"{label}: cannot be read ({reason(error)})") from None
        if not value or (value["bytes"] is None and value["path"] is None):
            raise InputError(f"{label}: the row holds no image; take it out of the data set")
        if value["bytes"] is not None:
            return io.BytesIO(value["bytes"]), label
        path = Path(value["path"])
        if not path.is_file():
            raise InputError(f"{label}: its file {path} is not there; download the data set, or save it again")
        return path, label

    size, own_mode = read_picture_header(*stored(0), max_pixels(image_size))
    mode = check_mode(own_mode, image_mode, f"{where}, image 0")

    def decode(index: int) -> np.ndarray:
        source, label = stored(index)
        size_here, mode_here = read_picture_header(source, label, max_pixels(image_size))
        if image_size is None and size_here != size:
            raise InputError(
                f"{where}: image 0 is {size[0]}×{size[1]} pixels, image {index} is {size_here[0]}×{size_here[1]}; "
                "expected one size: scale and crop to N×N with --image-size N"
            )
        if check_mode(mode_here, image_mode, label) != mode:
            raise InputError(
                f"{where}: image 0 has mode {mode}, image {index} has mode {mode_here}; expected one mode: "
                "convert with --image-mode L or RGB"
            )
        if isinstance(source, io.BytesIO):
            source.seek(0)
        return fit_image(read_picture(source, label, mode, max_pixels(image_size)), image_size, label)

    width, height = (image_size, image_size) if image_size is not None else size
    shape = SampleShape(MODES[mode], height, width)
    label = f"data set {where}"
    if len(table) * shape.num_elements <= MAX_DECODED_BYTES:
        pixels = np.empty((len(table), *shape.chw), dtype=np.uint8)
        with progress_bar(len(table), "decoding images", unit="image") as bar:
            for index in range(len(table)):
                pixels[index] = decode(index)
                bar.update()
        images = ImageSet.from_array(label, pixels)
    else:
        # datasets' own fingerprint follows from the files and every operation on them.
        images = ImageSet(label, shape, len(table), decode, f"{table._fingerprint} {shape} {mode}")
    return images if labels is None else images.with_labels(labels)


def _load(name: str, split: str | None) -> Any:
    import datasets

    datasets.disable_progress_bars()
    if Path(name).is_dir() and is_saved_dataset(Path(name)):
        return _load_saved(name, split)
    wanted = split or DEFAULT_SPLIT
    is_folder = Path(name).is_dir()
    if not is_folder and name in _PACKAGED:
        raise InputError(
            f"--data {name}: is a kind of data set, which would read whatever lies here; give the folder that holds one"
        )
    try:
        # A folder of that name, too, would be taken for the kind.
        return datasets.load_dataset(str(Path(name).absolute()) if is_folder else name, split=wanted)
    except Exception as error:  # the library raises its own, pyarrow's, fsspec's and the hub's
        kind = MissingSplitError if str(error).startswith(_UNKNOWN_SPLIT) else InputError
        raise kind(
            f"--data {name}: cannot be loaded as a Hugging Face data set, split {wanted} ({reason(error)}); "
            "give an existing folder of images, an .npz file, a local data set, or a name that can be downloaded "
            f"from here{_offline_hint()}"
        ) from None


def _load_saved(folder: str, split: str | None) -> Any:
    import datasets

    try:
        saved = datasets.load_from_disk(folder)
    except Exception as error:  # as above
        raise InputError(f"{folder}: cannot be loaded as a saved data set ({reason(error)})") from None
    if isinstance(saved, datasets.DatasetDict):
        return _select(folder, {str(name): table for name, table in saved.items()}, split or DEFAULT_SPLIT)
    if split is None:
        return saved
    if saved.split is None:
        raise MissingSplitError(
            f"{folder}: is one saved table of no named split, so --split {split} does not apply; leave it out"
        )
    return _select(folder, {str(saved.split): saved}, split)


def _select(folder: str, tables: dict[str, Any], split: str) -> Any:
    """The rows that `split` says, as `datasets.load_dataset` reads it: `train`, `train[:10%]+test[5:]`, `all`."""
    import datasets

    if split == "all" and split not in tables:
        return _joined(folder, tables.values())
    lengths = {name: len(table) for name, table in tables.items()}
    for part in split.split("+"):
        base = part.strip().partition("[")[0].partition("(")[0]
        if base not in tables:
            raise MissingSplitError(
                f"{folder}: has no split {base!r}, found {', '.join(tables)}; choose one with --split"
            )
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        raise InputError(
            f"{folder}: --split {split} cannot be read ({reason(error)}); "
            "expected a name, or a slice such as train[:100] or train[10%:20%]"
        ) from None
    if len(parts) == 1 and parts[0].from_ == 0 and parts[0].to == lengths[parts[0].splitname]:
        return tables[parts[0].splitname]
    return _joined(
        folder, (tables[part.splitname].select(range(part.from_, max(part.from_, part.to))) for part in parts)
    )


def _joined(folder: str, tables: Iterable[Any]) -> Any:
    import datasets

    try:
        return datasets.concatenate_datasets(list(tables))
    except ValueError as error:
        raise InputError(f"{folder}: its splits cannot be joined ({reason(error)}); choose one with --split") from None


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
