"""A file that ONNX Runtime runs is its own reference; what it can be asked is whether its samples keep apart.

A network that lets the samples of a batch see each other, or draws at random, gives sample k of a seed another image in
every batch, without a word. It is found out once, at the file's first use.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from commands.errors import VerificationError
from diffusion.reference_loop import initial_noise
from runtime.engines.cache_folder import keep, read_kept
from runtime.engines.interface import Engine
from runtime.engines.verification import TOLERANCES, predict_with, relative_error

_KIND = "apart"
_FORMAT = 1
_NUM = 3
_INT8 = 5e-2
"""Scales that are measured while it runs are those of the whole batch."""


def ensure_samples_apart(engine: Engine, path: Path) -> None:
    """Compare predictions in a batch of three with those of each sample alone, unless that was done already.

    Args:
        engine: of an ONNX file, ready to run.
        path: the file.

    Raises:
        VerificationError: they differ by more than the tolerance of the file's precision.
        InputError: the network fails.
    """
    key = json.dumps([_FORMAT, engine.sha256, engine.name, engine.process.to_json()])
    if read_kept(_KIND, key) == b"apart":
        return
    predict, process = predict_with(engine), engine.process
    x = initial_noise((_NUM, *process.sample.chw), 0, 0)
    t = np.linspace(0, process.schedule.num_train_timesteps - 1, _NUM).round().astype(np.float32)
    if getattr(engine, "shares_timestep", False):
        t[:] = t[-1]  # else it would be called for each of them
    with np.errstate(all="ignore"):
        together = predict(x, t)
        alone = np.concatenate([predict(x[k : k + 1], t[k : k + 1]) for k in range(_NUM)])
    if not (np.isfinite(together).all() and np.isfinite(alone).all()):
        return  # which the chain says of the very samples that are drawn
    error, tolerance = relative_error(together, alone), TOLERANCES.get(engine.precision, _INT8)
    if error > tolerance:
        raise VerificationError(
            f"{path}: its predictions with {engine.name} depend on what else is in the batch, or on chance: "
            f"{error:.2g} from those of each sample alone (tolerance {tolerance:g}); correct the network (an operator "
            "over the first axis, a Reshape that fixes the batch, a random number?)"
        )
    keep(_KIND, key, b"apart")
