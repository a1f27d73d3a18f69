"""From what `--data` says to the images to train on and those held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffusion.errors import InputError
from train.digits import LEVELS, load_digits_split
from train.image_set import ImageSet

__all__ = ["DataRequest", "load_data", "load_digits_split"]

_IMAGE_OPTIONS = ("image_size", "image_mode")
_TABLE_OPTIONS = ("split", "image_column")


@dataclass(frozen=True)
class DataRequest:
    """What a user said about the data.

    Attributes:
        data: `digits`, a folder of images, an .npz file, or a Hugging Face data set (a name or a folder).
        split, image_column: of a Hugging Face data set.
        image_size, image_mode: see `train.image_folder.load_image_folder`.
        held_out: how many images to hold out; None for the data's own held-out part, or one in twenty.
        held_out_split: the split of a Hugging Face data set that is its own held-out part.
    """

    data: str
    split: str | None = None
    image_column: str | None = None
    image_size: int | None = None
    image_mode: str | None = None
    held_out: int | None = None
    held_out_split: str | None = None


def load_data(request: DataRequest) -> tuple[ImageSet, ImageSet | None]:
    """The images to train on, and those held out (None where there are none).

    Raises:
        InputError: the data is not there, is of no known kind, cannot be read, or an option does not apply to it.
    """
    path = Path(request.data)
    if request.data == "digits":
        _refuse(request, "digits", *_IMAGE_OPTIONS, *_TABLE_OPTIONS)
        split = load_digits_split()
        train = ImageSet.from_array("digits", split.train_images, LEVELS)
        held_out = ImageSet.from_array("digits", split.held_out_images, LEVELS)
        if request.held_out is not None:
            if request.held_out > held_out.num_images:
                raise InputError(
                    f"--held-out is {request.held_out}, but digits has {held_out.num_images} held-out images"
                )
            return train, held_out.subset(range(request.held_out)) if request.held_out else None
        return train, held_out
    if path.suffix == ".npz":
        from train.npz_images import load_npz

        _refuse(request, "an .npz file", *_IMAGE_OPTIONS, *_TABLE_OPTIONS)
        if not path.is_file():
            raise InputError(f"--data {request.data}: no such file")
        return load_npz(path).split(request.held_out)
    if path.is_dir() and _is_image_folder(path):
        from train.image_folder import load_image_folder

        _refuse(request, "a folder of images", *_TABLE_OPTIONS)
        return load_image_folder(path, request.image_size, request.image_mode).split(request.held_out)
    if path.exists() and not path.is_dir():
        raise InputError(
            f"--data {request.data}: found a file, expected digits, a folder of images, an .npz file or a "
            "Hugging Face data set"
        )
    if not path.exists() and (path.is_absolute() or request.data.startswith((".", "~")) or len(path.parts) > 2):
        raise InputError(
            f"--data {request.data}: no such folder; expected digits, a folder of images, an .npz file, "
            "or a Hugging Face data set"
        )
    return _from_hugging_face(request)


def _is_image_folder(path: Path) -> bool:
    from train.hugging_face import is_saved_dataset

    if is_saved_dataset(path):
        return False
    # A folder of tables or of a builder's files is left to `datasets`; everything else should hold images.
    return not any(file.suffix in (".parquet", ".arrow", ".jsonl", ".csv", ".tar") for file in path.rglob("*"))


def _from_hugging_face(request: DataRequest) -> tuple[ImageSet, ImageSet | None]:
    from train.hugging_face import load_hugging_face

    def load(split: str) -> ImageSet:
        return load_hugging_face(request.data, split, request.image_column, request.image_size, request.image_mode)

    train = load(request.split or "train")
    if request.held_out_split is None:
        return train.split(request.held_out)
    held_out = load(request.held_out_split)
    if held_out.shape != train.shape:
        raise InputError(f"{held_out.name}: images are {held_out.shape.chw}, those to train on {train.shape.chw}")
    return train, held_out


def _refuse(request: DataRequest, kind: str, *options: str) -> None:
    for option in options:
        if getattr(request, option) is not None:
            raise InputError(f"--{option.replace('_', '-')} does not apply to {kind}; leave it out")
