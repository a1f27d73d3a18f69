"""An ONNX file is compared once with ONNX Runtime's CPU provider before another backend runs it.

Backends have operators that they compute otherwise without a word; an ONNX file was compared with none of them when it
was made. So it is compared where it first runs, on states of its own chains, in batches of 1, 2 and 5 with different
timesteps, and what was found is kept in the user's cache folder, as an engine's verification is.
"""

from __future__ import annotations

import importlib.metadata
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from commands.errors import VerificationError, reason
from commands.program import say
from runtime.engines.cache_folder import keep, read_kept
from runtime.engines.interface import Engine
from runtime.engines.onnx_runtime import OnnxRuntimeEngine
from runtime.engines.trajectories import make_golden
from runtime.engines.verification import (
    EngineVerification,
    Predict,
    predict_with,
    relative_error,
    verify_engine,
)
from runtime.formats.golden import Golden
from runtime.formats.place import Place
from runtime.formats.precision import FP32, PRECISIONS

_KIND = "compared"
_FORMAT = 2
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")

MAX_BYTES = 2**25
"""Of a file's weights; convolutions of larger networks take minutes in NumPy."""

ON_GPU = {name: precision.tolerance_on_gpu for name, precision in PRECISIONS.items()}
"""Largest relative L2 error of ONNX Runtime on a GPU from itself on the CPU, whose sums have another order."""


@dataclass(frozen=True)
class Agreement:
    """Whether a backend computes what ONNX Runtime computes.

    Attributes:
        passed: within the tolerance.
        onnx_runtime_is_sure: if not, whether nothing speaks against ONNX Runtime, which may then run the file.
        summary: one line.
        table: error by timestep, several lines.
    """

    passed: bool
    onnx_runtime_is_sure: bool
    summary: str
    table: str


def find_agreement(
    engine: Engine,
    path: Path,
    place: Place,
    open_reference: Callable[[], OnnxRuntimeEngine],
    tolerance: float = FP32.tolerance,
    output_name: str | None = None,
) -> Agreement:
    """Compare a file's engine with ONNX Runtime's CPU provider, unless that was done already.

    Args:
        engine: of another backend or device, ready to run.
        path: the file.
        place: where the engine runs.
        open_reference: opens the file with ONNX Runtime on the CPU.
        tolerance: for every error.
        output_name: of the prediction, where the user said which output it is.

    Raises:
        InputError, DeviceUnavailableError: ONNX Runtime cannot run the file.
        VerificationError: the file itself mixes the samples of a batch, or predicts what is not finite.
    """
    described = [_FORMAT, engine.sha256, place.to_json(), _onnx_runtime_version(), tolerance, output_name]
    key = json.dumps([*described, engine.process.to_json()])
    kept = _read(read_kept(_KIND, key))
    if kept is not None:
        return kept
    say(f"{path}: first use on {place}: comparing with ONNX Runtime's CPU provider")
    reference = open_reference()
    # States that overflow are the chain's to report; what is not finite does not agree with anything.
    with np.errstate(all="ignore"):
        found = _compare(engine, reference, path, place, tolerance)
    report = {"file": str(path.resolve()), "agreement": asdict(found)}
    if not keep(_KIND, key, json.dumps(report, indent=1).encode()):
        say(f"{path}: the cache folder cannot be written, so the next run compares again")
    if found.passed:
        say(f"{path}: {found.summary}")
    return found


def _compare(engine: Engine, reference: OnnxRuntimeEngine, path: Path, place: Place, tolerance: float) -> Agreement:
    process = reference.process
    golden = make_golden(process, predict_with(reference), "fp32")

    def verify(predict: Predict, ran_on: str) -> EngineVerification:
        return verify_engine(golden, process, predict, "fp32", reference.name, ran_on, tolerance)

    result = verify(predict_with(engine), str(place))
    worst = f"predictions at most {result.worst:.1e} from {reference.name}, x_0 after {result.chain_steps} steps "
    worst += f"{result.chain_error:.1e} (tolerance {tolerance:g})"
    if result.passed:
        return Agreement(True, True, f"compared: {worst}", result.table())
    alone = verify(predict_with(reference), reference.name)
    if not alone.passed:
        if not np.isfinite(alone.worst):
            why = (
                "are not finite on states of its own chains; correct the network or the flags that describe its process"
            )
        else:
            why = "depend on what else is in the batch; correct the network (a Reshape that fixes the batch?)"
        raise VerificationError(f"{path}: its predictions with {reference.name} {why}\n{alone.table()}")
    sure, opinion = _third_opinion(engine, reference, path, golden, tolerance)
    return Agreement(False, sure, f"{engine.name} is off: {worst}; {opinion}", result.table())


def _third_opinion(
    engine: Engine, reference: OnnxRuntimeEngine, path: Path, golden: Golden, tolerance: float
) -> tuple[bool, str]:
    """Whether nothing speaks against ONNX Runtime, and what onnx's own evaluator says, on the worst of the batches."""
    ours, theirs = predict_with(reference), predict_with(engine)
    states = [
        (golden.x[at], golden.timesteps[at[0]].astype(np.float32), *(each[at] for each in golden.conditions))
        for at in golden.batches()
    ]
    errors = [relative_error(theirs(*state), ours(*state)) for state in states]
    state = states[int(np.argmax(np.nan_to_num(errors, nan=np.inf)))]
    try:
        third = predict_with(ReferenceEngine(path, reference))(*state)
    except NoThirdOpinionError as error:
        return True, f"onnx's reference evaluator was not asked ({error})"
    from_ours, from_theirs = relative_error(ours(*state), third), relative_error(theirs(*state), third)
    if from_ours <= tolerance:
        return True, f"onnx's reference evaluator agrees with ONNX Runtime ({from_ours:.1e})"
    if from_theirs <= tolerance:
        return False, f"onnx's reference evaluator agrees with it, and not with ONNX Runtime ({from_ours:.1e})"
    return False, f"onnx's reference evaluator agrees with neither ({from_ours:.1e} from ONNX Runtime)"


def _read(content: bytes | None) -> Agreement | None:
    try:
        fields: dict[str, Any] = json.loads(content or b"null")["agreement"]
        found = Agreement(**fields)
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found.passed, bool) and isinstance(found.onnx_runtime_is_sure, bool) else None


def _onnx_runtime_version() -> str:
    """Without importing it, which takes half a second."""
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    import onnxruntime

    return str(onnxruntime.__version__)


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
        if not like.file.is_whole or path.stat().st_size > MAX_BYTES:
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

    def _bind(
        self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray, *conditions: np.ndarray
    ) -> Callable[[], None]:
        """The call raises NoThirdOpinionError for what cannot be run."""
        feeds, output = self._like.feeds(x, t, *conditions), self._like.output_name

        def call() -> None:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    (found,) = self._evaluator.run([output], feeds)
                    prediction[...] = found
                except Exception as error:  # as above
                    raise NoThirdOpinionError(f"{type(error).__name__}: {reason(error)}") from error

        return call
