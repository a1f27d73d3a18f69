"""The images that a table is fitted to: what its checkpoint was trained on, unless others are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusion.errors import InputError
from diffusion.process import Process
from runtime.formats.fields import Fields
from runtime.formats.train_record import TrainRecord
from runtime.pictures import MODES
from train.datasets import DataRequest, load_data
from train.image_set import ImageSet

_REMEDY = "name the data, or fit to the teacher"
_TEXTS = ("split", "image_column", "held_out_split", "class_column")
_NUMBERS = {"image_size": 1, "levels": 2, "held_out": 0}
"""With the smallest of each."""


def data_to_fit(checkpoint: Path, request: DataRequest, process: Process) -> tuple[ImageSet, ImageSet | None]:
    """The images to fit to, with classes if they have any, and those held out.

    Args:
        checkpoint: a folder, whose train.json is asked if `request` names no data.
        request: what the user named.
        process: of the network.

    Raises:
        InputError: there are none, they are of another shape or classes, or they were changed since the training.
    """
    known = None if request.data else _known(checkpoint)
    asked = request if known is None else _recorded(known)
    try:
        images, held_out = load_data(replace(asked, classes=True))
    except InputError:  # it has no classes
        images, held_out = load_data(asked)
    if known is not None:
        _check_unchanged(images, known, checkpoint)
    if images.shape.chw != process.sample.chw:
        raise InputError(f"{images.name}: images are {images.shape.chw}, the network's samples {process.sample.chw}")
    if images.num_images < 2:
        raise InputError(f"{images.name}: holds 1 image to fit to, expected some thousand")
    if process.label is not None and images.labels is not None:
        found, expected = len(images.labels.names), process.label.classes
        if found != expected:
            raise InputError(
                f"{images.name}: has {found} classes, the network {expected}; name the data it was trained on"
            )
    return images, held_out


def _known(checkpoint: Path) -> Fields:
    """What train.json says of the data."""
    record = TrainRecord.read(checkpoint)
    config = {} if record is None else record.facts.get("config", {})
    known = config.get("data") if isinstance(config, dict) else None
    if not isinstance(known, dict) or not isinstance(known.get("data"), str):
        raise InputError(f"{checkpoint}: does not say what it was trained on; {_REMEDY}")
    return Fields(known, checkpoint, _REMEDY, "what it was trained on: ")


def _recorded(known: Fields) -> DataRequest:
    given: dict[str, Any] = {name: known.optional(name, str) for name in (*_TEXTS, "image_mode")}
    if given["image_mode"] not in (None, *MODES):
        raise known.wrong("image_mode", given["image_mode"], " or ".join(MODES))
    for name, least in _NUMBERS.items():
        given[name] = known.optional(name, int)
        if given[name] is not None and given[name] < least:
            raise known.wrong(name, given[name], f"at least {least}")
    return DataRequest(known.get("data", str), classes=True if "classes" in known.values else None, **given)


def _check_unchanged(images: ImageSet, known: Fields, checkpoint: Path) -> None:
    fingerprints = {"fingerprint": images.fingerprint}
    if images.labels is not None:
        fingerprints["classes"] = images.labels.fingerprint
    for name, fingerprint in fingerprints.items():
        if known.optional(name, str, fingerprint) != fingerprint:
            raise InputError(f"{images.name}: was changed since {checkpoint} was trained on it; {_REMEDY}")
