"""The class of every training image: from digits, from sub-folders, from an array, or from a data set's column."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from commands.errors import reason
from diffusion.conditions import INT64, MAX_CLASSES, Condition
from diffusion.errors import InputError
from diffusion.number_checks import is_whole, shown
from train.folder_listing import SPLITS

LABEL = "y"
"""The name of the network's input."""


@dataclass(frozen=True, eq=False)
class Labels:
    """A class for each of a number of images.

    Attributes:
        names: of the classes, in the order of their numbers.
        of_image: int64 [num_images], numbers of classes.
    """

    names: tuple[str, ...]
    of_image: np.ndarray

    @classmethod
    def from_names(cls, names: Sequence[str]) -> Labels:
        """Classes in the order of their names: of sub-folders, as `torchvision` and `datasets` number them."""
        known, of_image = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)
        return cls(tuple(map(str, known)), of_image.reshape(-1).astype(np.int64))

    @classmethod
    def from_numbers(cls, numbers: object, where: str, names: Sequence[str] | None = None) -> Labels:
        """Classes that are numbered already.

        Args:
            numbers: whole, of at least 0.
            where: what to call them in an error.
            names: of all classes; None for their numbers.

        Raises:
            InputError: other numbers, or one that has no name.
        """
        found = np.asarray(numbers)
        if found.ndim != 1 or found.dtype.kind not in "iu" or not found.size:
            raise InputError(f"{where}: found {found.dtype} {list(found.shape)}, expected whole numbers of classes [N]")
        highest = int(found.max()) if names is None else len(names) - 1
        # More are numbers of something else: of images, of persons, of seconds; each has a name, and a row of weights.
        if names is None and highest >= MAX_CLASSES:
            raise InputError(
                f"{where}: the highest label is {highest}, expected less than {MAX_CLASSES} classes, numbered from 0; "
                "number them so, or choose a column of classes"
            )
        if int(found.min()) < 0 or int(found.max()) > highest:
            place = int(np.flatnonzero((found < 0) | (found > highest))[0])
            raise InputError(f"{where}: label {place} is {int(found[place])}, expected 0 to {max(0, highest)}")
        given = tuple(map(str, range(highest + 1) if names is None else names))
        return cls(given, found.astype(np.int64))

    def subset(self, indices: np.ndarray) -> Labels:
        """Those of the images at `indices`; the classes stay."""
        return Labels(self.names, self.of_image[indices])

    def condition(self, with_null: bool) -> Condition:
        """What a network that is trained with them takes.

        Args:
            with_null: whether there is one label more, of no class.
        """
        return Condition(LABEL, INT64, classes=len(self.names), null=len(self.names) if with_null else None)

    @property
    def fingerprint(self) -> str:
        """Changes with the labels, so that a run is not resumed with others."""
        return hashlib.sha256(repr(self.names).encode() + self.of_image.astype("<i8").tobytes()).hexdigest()


def labels_of_folder(folder: Path, pictures: Sequence[Path]) -> Labels:
    """The sub-folder of every picture; where all lie in folders that are named as splits are, the folder within that.

    Raises:
        InputError: a picture that lies in no sub-folder.
    """
    inside = [picture.relative_to(folder).parts[:-1] for picture in pictures]
    splits = {name for names in SPLITS.values() for name in names}
    if all(parts and parts[0].lower() in splits for parts in inside):
        inside = [parts[1:] for parts in inside]
    for picture, parts in zip(pictures, inside, strict=True):
        if not parts:
            raise InputError(
                f"{picture}: lies in no sub-folder of a class, expected one sub-folder for each class; "
                "sort the pictures, or leave out --classes"
            )
    return Labels.from_names([parts[0] for parts in inside])


def labels_of_column(table: Any, column: str | None, where: str) -> Labels:
    """The classes of a Hugging Face table.

    Args:
        table: a `datasets.Dataset`.
        column: of labels, of texts or of whole numbers; None for the only one of type `ClassLabel`.
        where: what to call the table in an error.

    Raises:
        InputError: no such column, several, or rows without a class.
    """
    import datasets

    if column is None:
        found = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
        if len(found) != 1:
            raise InputError(
                f"{where}: found {len(found)} columns of class labels among {', '.join(table.column_names)}, expected "
                "one; choose with --classes COLUMN"
            )
        (column,) = found
    if column not in table.column_names:
        raise InputError(f"{where}: has no column {column!r}, found {', '.join(table.column_names)}")
    try:
        values = list(table.with_format(None)[column])
    except Exception as error:  # the library raises its own, pyarrow's and fsspec's
        raise InputError(f"{where}: column {column!r} cannot be read ({reason(error)})") from None
    for place, value in enumerate(values):
        if not isinstance(value, str) and not is_whole(value):
            raise InputError(f"{where}: row {place} of column {column!r} is {shown(value)}, expected a class")
    feature = table.features[column]
    if all(isinstance(value, str) for value in values):
        return Labels.from_names(values)
    if any(isinstance(value, str) for value in values):
        raise InputError(f"{where}: column {column!r} holds texts and numbers, expected one of them")
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    return Labels.from_numbers(np.array(values, dtype=np.int64), f"{where}, column {column!r}", names)
