"""onnx's reference evaluator: a third opinion where two backends differ. Slow, and NumPy only.

The one file of the runtime that imports onnx, and only when it is asked and onnx is installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from commands.errors import reason
from runtime.engines.interface import Engine
from runtime.engines.network_bytes import external_locations
from runtime.engines.onnx_runtime import OnnxRuntimeEngine

MAX_BYTES = 2**25
"""Of a file's weights; convolutions of larger networks take minutes in NumPy."""


class NoThirdOpinionError(Exception):
    """The evaluator cannot run the file, and why."""


class ReferenceEngine(Engine):
    """A file run by onnx's reference evaluator: a `runtime.engines.interface.Engine` for comparisons.

    Args:
        path: the file.
        like: the same file opened by ONNX Runtime, which knows its inputs and outputs.

    Raises:
        NoThirdOpinionError: onnx is not installed, the file is too large, or the evaluator does not know it.
    """

    def __init__(self, path: Path, like: OnnxRuntimeEngine) -> None:
        self.name, self.process, self.sha256, self.precision = "onnx", like.process, like.sha256, like.precision
        self.shares_timestep = like.shares_timestep
        self._like = like
        if path.stat().st_size > MAX_BYTES or external_locations(path):
            raise NoThirdOpinionError(f"the file is larger than {MAX_BYTES >> 20} MiB, or not all of its network")
        try:
            import onnx
            from onnx.reference import ReferenceEvaluator
        except ImportError as error:
            raise NoThirdOpinionError("onnx is not installed") from error
        try:
            self._evaluator = ReferenceEvaluator(onnx.load(str(path)))
        except Exception as error:  # whatever the evaluator raises for what it does not know
            raise NoThirdOpinionError(f"{type(error).__name__}: {reason(error)}") from error

    def batch_range(self) -> tuple[int, int | None]:
        """As `Engine.batch_range`."""
        return self._like.batch_range()

    def _bind(self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray) -> Callable[[], None]:
        """The call raises NoThirdOpinionError for what cannot be run."""
        feeds, output = self._like.feeds(x, t), self._like.output_name

        def call() -> None:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    (found,) = self._evaluator.run([output], feeds)
                    prediction[...] = found
                except Exception as error:  # as above
                    raise NoThirdOpinionError(f"{type(error).__name__}: {reason(error)}") from error

        return call
