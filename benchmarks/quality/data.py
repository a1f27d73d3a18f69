"""The data that samples are compared with, and the features and classes in which they are."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from benchmarks.quality.score import Features
from commands.program import Report
from diffusion.errors import InputError
from diffusion.process import SampleShape
from runtime.images import quantize
from train.datasets import DataRequest, load_data
from train.digits import BUNDLED
from train.image_set import FULL, ImageSet, fewer_levels

DIGITS = "digits"


def load_images(
    request: DataRequest, sample: SampleShape
) -> tuple[np.ndarray, np.ndarray | None, str, tuple[str, ...]]:
    """The data and its held-out part as images uint8 [N, H, W, C], a fingerprint of the first, and notes for the user.

    Raises:
        InputError: no such data, images of another shape than the network's samples, or of other gray levels.
    """
    if request.levels is None and request.data not in BUNDLED and sample.levels != FULL:
        request = dataclasses.replace(request, levels=sample.levels)
    train, held_out = load_data(request)
    if train.shape.chw != sample.chw:
        raise InputError(f"--data {request.data}: images are {train.shape.chw}, the network's samples {sample.chw}")
    fewer = fewer_levels(train) if request.levels is None else None
    if fewer is not None and fewer[1]:
        raise InputError(
            f"--data {request.data}: no pixel is above {fewer[0] - 1} of 255, so all images are nearly black; give "
            f"--levels {fewer[0]} if these are gray levels, or --levels {FULL} if they are meant so"
        )

    def images(part: ImageSet) -> np.ndarray:
        return quantize(part.x_start(range(part.num_images)))

    real = images(train)
    sha256 = hashlib.sha256(real.tobytes()).hexdigest()
    return real, None if held_out is None else images(held_out), sha256, train.notes


def load_features(
    features: str | None, data: str, train: np.ndarray, held_out: np.ndarray | None
) -> tuple[Features, Report]:
    """The feature extractor, and what is to be said of it.

    Args:
        features: a TorchScript file, or one of `train.digits.BUNDLED`; None for a classifier of the data.
        data: what the images are of.
        train, held_out: the images.

    Raises:
        InputError: features of digits for other data, or a file that is no TorchScript module.
    """
    # Only here: torch takes seconds to import, and errors of the command line should not.
    name = features or (data if data in BUNDLED else DIGITS)
    if name not in BUNDLED:
        from benchmarks.quality.features import TorchScriptFeatures

        of_file = TorchScriptFeatures(Path(name))
        return of_file, {"name": of_file.name, "sha256": of_file.fingerprint()}
    if data != name:
        raise InputError(f"--features {name} is for --data {name}, found --data {data}; give a TorchScript file")
    from benchmarks.quality.features import DigitFeatures

    split = BUNDLED[data]()
    extractor = DigitFeatures(train, split.train_labels)
    assert held_out is not None  # bundled digits always have it
    return extractor, {
        "name": extractor.name,
        "sha256": extractor.fingerprint(),
        "held_out_accuracy": float((extractor.classes(held_out) == split.held_out_labels).mean()),
    }
