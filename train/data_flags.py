"""The flags that say what the data is, the same for training and for everything that measures against it."""

from __future__ import annotations

import argparse
from typing import Any

from diffusion.errors import InputError
from train.datasets import DataRequest

_DATA = "digits, a folder of images, an .npz file, or a Hugging Face data set (name or folder)"


def add_data_flags(parser: argparse.ArgumentParser, default: str, split_default: str) -> None:
    """`--data` and all that goes with it, in a group of their own.

    Args:
        parser: of the command.
        default: what the help says is taken without `--data`.
        split_default: what it says is taken without `--split`.
    """
    data = parser.add_argument_group("data", "pictures are read as docs/pictures.md says")
    data.add_argument("--data", help=f"{_DATA}; default: {default}")
    data.add_argument(
        "--split",
        help="of a Hugging Face data set, with slices such as train[:100], or the sub-folder of that name in a "
        f"folder of images, or all; default: {split_default}",
    )
    data.add_argument("--image-column", metavar="NAME", help="column of a Hugging Face data set; default: the only one")
    data.add_argument("--image-size", type=int, metavar="N", help="scale and crop images to N×N")
    data.add_argument("--image-mode", choices=("L", "RGB"), help="convert images to gray or to color")
    data.add_argument(
        "--levels", type=int, metavar="N", help="gray levels of the data, stored as 0 to N-1 or spread over 0 to 255; "
        "default: 256, of digits 17"
    )  # fmt: skip
    data.add_argument(
        "--held-out", type=int, metavar="N", help="images to hold out for the held-out loss; default: one in twenty, "
        "at most 1000"
    )  # fmt: skip


def data_request(args: argparse.Namespace, data: str, **changes: Any) -> DataRequest:
    """What `add_data_flags` parsed.

    Args:
        args: of the command.
        data: where `--data` is not given.
        changes: fields to set otherwise.

    Raises:
        InputError: a number that is out of range.
    """
    for name, lowest in {"image_size": 1, "held_out": 0, "levels": 2}.items():
        value = getattr(args, name)
        if value is not None and value < lowest:
            raise InputError(f"--{name.replace('_', '-')} is {value}, expected a whole number of at least {lowest}")
    fields: dict[str, Any] = {
        "data": args.data or data,
        "split": args.split,
        "image_column": args.image_column,
        "image_size": args.image_size,
        "image_mode": args.image_mode,
        "levels": args.levels,
        "held_out": args.held_out,
    }
    return DataRequest(**{**fields, **changes})
