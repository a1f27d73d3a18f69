"""A sample's prediction must not depend on what else is in its batch; ONNX Runtime's own batches are checked once.

Nothing in an ONNX file says so: a mean over the first axis, a running sum along it, or batch normalization in training
mode mix samples, and the images then depend on the batch size. The gates of `agreement` and of the exporters compare
every engine with single samples; what ONNX Runtime itself runs on the CPU is compared with single samples here, where
it first runs. What passed is kept in the user's cache folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from commands.errors import VerificationError
from commands.program import say
from diffusion.errors import InputError
from runtime.engines.cache_folder import keep, read_kept
from runtime.engines.gate_conditions import gate_conditions
from runtime.engines.interface import Engine
from runtime.engines.verification import Predict, predict_with, relative_error
from runtime.formats.precision import INT8, PRECISIONS

BATCHES = (5, 2)
"""Sizes of the batches that are compared with single samples."""

_KIND = "independent"
_FORMAT = 1
# Batches that a network may have fixed inside although its first axis is open.
_FIXED_INSIDE = (*range(2, 17), 32, 64)
_SEED = 0


def ensure_independent(engine: Engine, path: Path, output_name: str | None) -> None:
    """Compare an engine's batches with the same samples alone, unless that was done already.

    Args:
        engine: ready to run.
        path: its file.
        output_name: of the prediction, where the file has several outputs and the user said which.

    Raises:
        VerificationError: a prediction depends on the rest of the batch, or is another one at each call.
        InputError: the network fails on every batch that was tried.
    """
    smallest, largest = engine.batch_range()
    if largest == 1:
        return
    tolerance = PRECISIONS[engine.precision].tolerance
    key = json.dumps([_FORMAT, engine.sha256, engine.name, output_name, tolerance, engine.process.to_json()])
    if read_kept(_KIND, key) is not None:
        return
    say(f"{path}: first use with {engine.name}: comparing batches with single samples")
    with np.errstate(all="ignore"):  # predictions that are not finite are the chain's to report
        worst = _worst_error(engine, path, smallest, tolerance)
    report = {"file": str(path.resolve()), "engine": engine.name, "largest_relative_error": worst}
    if not keep(_KIND, key, json.dumps(report, indent=1).encode()):
        say(f"{path}: the cache folder cannot be written, so the next run compares again")


def _worst_error(engine: Engine, path: Path, smallest: int, tolerance: float) -> float:
    """The largest error that was found. Raises as `ensure_independent`."""
    x, t = _states(engine)
    try:
        predict = predict_with(engine)
        conditions = gate_conditions(engine.process.conditions, len(x), 0, engine.precision)
        alone = _alone(predict, x, t, *conditions)
    except InputError as error:
        if smallest != 1:
            raise
        first_alone = (x[:1], t[:1], *(each[:1] for each in conditions))
        predict = _predict_with_fixed_inside(engine, first_alone, error)
        alone = _alone(predict, x, t, *conditions)
    worst, first = 0.0, 0
    for size in BATCHES:
        part = slice(first, first + size)
        first += size
        try:
            together = predict(x[part], t[part], *(each[part] for each in conditions))
        except InputError:
            continue  # a batch that the network refuses makes no image
        errors = [_error(*pair) for pair in zip(together, alone[part], strict=True)]
        if max(errors) > tolerance:
            parts = [each[part] for each in (x, t, *conditions)]
            again = [_error(*pair) for pair in zip(_alone(predict, *parts), alone[part], strict=True)]
            if max(again) > tolerance:
                raise VerificationError(
                    f"{path}: its predictions with {engine.name} depend on what else is in the batch, or on chance: "
                    f"for the same sample alone they differ from call to call by {max(again):.1e} (tolerance "
                    f"{tolerance:g}); take random operators and those in training mode (Dropout, BatchNormalization) "
                    "out of the network"
                )
            way_out = "correct the network (a reduction over the first axis?)"
            if engine.precision == "int8":
                way_out += ", or quantize it with static scales"
            raise VerificationError(
                f"{path}: its predictions with {engine.name} depend on what else is in the batch: in a batch of {size} "
                f"they differ from those of single samples by {max(errors):.1e} (tolerance {tolerance:g}); {way_out}"
            )
        worst = max(worst, *errors)
    return worst


def _states(engine: Engine) -> tuple[np.ndarray, np.ndarray]:
    """x [7, C, H, W] and t [7]: unit noise around means that differ, and timesteps from both ends and between."""
    num = sum(BATCHES)
    x = np.random.default_rng(_SEED).standard_normal((num, *engine.process.sample.chw))
    # Of pure noise all samples have nearly the same statistics, and those of the batch would be right for each.
    x += np.linspace(-0.5, 0.5, num)[:, None, None, None]
    last = engine.process.schedule.num_train_timesteps - 1
    t = np.linspace(0, last, num).round()
    # One for each batch: a network with one t for all is never called with samples at different ones; and a chain's
    # batch has one timestep, so its predictions have one scale, which dynamic quantization takes from the whole batch.
    if engine.shares_timestep or engine.precision == INT8.name:
        t = np.repeat([last // 2, last], BATCHES)
    return x.astype(np.float32), t.astype(np.float32)


def _alone(predict: Predict, *arrays: np.ndarray) -> np.ndarray:
    return np.concatenate([predict(*(each[at : at + 1] for each in arrays)) for at in range(len(arrays[0]))])


def _predict_with_fixed_inside(engine: Engine, arrays: Sequence[np.ndarray], error: InputError) -> Predict:
    """As `predict_with`, with the one batch that runs. Raises the error of a batch of 1 if none does."""
    for size in _FIXED_INSIDE:
        predict = predict_with(engine, lambda _, size=size: size)  # type: ignore[misc]
        try:
            predict(*arrays)
        except InputError:
            continue
        return predict
    raise error


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    """As `relative_error` of one sample; equal if neither is finite, infinite if one is."""
    finite = np.isfinite(found).all(), np.isfinite(expected).all()
    if not any(finite):
        return 0.0
    return relative_error(found, expected) if all(finite) else float("inf")
