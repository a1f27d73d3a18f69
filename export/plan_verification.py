"""The graph that goes to a TensorRT builder, verified on the CPU against the network it was made from.

Predictions on states that lie on the reference's trajectories are compared by Polygraphy's Comparator; what is allowed
at each timestep, and a whole chain, by `runtime.engines.verification`.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime as ort
import polygraphy
from onnx import helper
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator, IterationResult, RunResults
from polygraphy.logger import G_LOGGER

from commands.errors import reason
from diffusion.errors import InputError
from diffusion.process import Process
from export.low_precision import emulate_rounding
from export.network_io import PREDICTION, T, X
from runtime.engines.verification import EngineVerification, Predict, finite_or_none, relative_error, verify_engine
from runtime.formats.golden import Golden
from runtime.formats.precision import PRECISIONS
from runtime.formats.verification_record import VerificationRecord

_SEVERITY_ERROR = 3


@dataclass(frozen=True)
class PlanVerification(EngineVerification):
    """The verification of a plan before it is published: by timestep, over a chain, and by Polygraphy.

    Attributes:
        compared: the largest relative L2 error of each network that Polygraphy compared with the reference, by name.
        executed: whether the plan itself ran.
    """

    compared: Mapping[str, float]
    executed: bool

    @property
    def passed(self) -> bool:
        """Whether the plan may be published."""
        return super().passed and all(error <= self.tolerance for error in self.compared.values())

    def record(self) -> VerificationRecord:
        """As it is kept in a sidecar: an error that is not finite is None."""
        return replace(
            super().record(),
            executed=self.executed,
            compared_by=f"Polygraphy {polygraphy.__version__}",
            compared={name: finite_or_none(error) for name, error in self.compared.items()},
        )

    def table(self) -> str:
        """As of `EngineVerification`, and a line for each network that was compared."""
        lines = [super().table()]
        for name, error in self.compared.items():
            mark = "" if error <= self.tolerance else "  too large"
            lines.append(f"{name}: at most {error:.3g}, allowed {self.tolerance:g}{mark}")
        return "\n".join(lines)


def verify_network(
    model: onnx.ModelProto, golden: Golden, process: Process, precision: str, reference: str
) -> PlanVerification:
    """Run the graph that goes to the builder on the CPU, as a GPU would round it.

    Args:
        model: with the names of `export.network_io` and an open batch.
        golden: the reference.
        process: what the network was trained to do.
        precision: of the graph, one of `runtime.formats.precision.ENGINE_PRECISIONS`.
        reference: what computed `golden`, for the report.
    """
    where = f"ONNX Runtime {ort.__version__} (CPU)"
    names = [condition.name for condition in process.conditions]
    networks: dict[str, Predict] = {}
    if precision != "bf16":  # of which ONNX Runtime's CPU provider has no convolutions
        networks[f"{where}, the {precision} graph"] = _run_on_cpu(model, names)
    if precision != "fp32":
        networks[f"{where}, the {precision} graph with every tensor rounded"] = _run_on_cpu(
            emulate_rounding(model), names
        )
    strictest = list(networks)[-1]
    recorded = _Recorded(networks[strictest])
    compared = compare_predictions(networks | {strictest: recorded}, golden, precision, reference)
    measured = verify_engine(golden, process, recorded, precision, reference, strictest)
    return PlanVerification(**vars(measured), compared=compared, executed=False)


def compare_predictions(
    networks: Mapping[str, Predict], golden: Golden, precision: str, reference: str
) -> dict[str, float]:
    """The largest relative L2 error of each network over the reference's batches, by Polygraphy's Comparator.

    Args:
        networks: to be compared, by name.
        golden: inputs, and what the reference predicts there.
        precision: which tolerance is the Comparator's threshold.
        reference: the name of the reference.
    """
    batches = golden.batches()
    feeds = [
        OrderedDict(
            [
                (X, golden.x[batch]),
                (T, golden.timesteps[batch[0]].astype(np.float32)),
                *((_condition(place), each[batch]) for place, each in enumerate(golden.conditions)),
            ]
        )
        for batch in batches
    ]
    expected = [OrderedDict([(PREDICTION, golden.prediction[batch])]) for batch in batches]
    with _quiet():
        results = RunResults()
        results.add(expected, runner_name=reference)
        results.extend(Comparator.run([_Runner(name, predict, golden) for name, predict in networks.items()], feeds))
        pairs = [(0, place) for place in range(1, len(networks) + 1)]
        accuracy = Comparator.compare_accuracy(
            results, comparisons=pairs, compare_func=_RelativeError(PRECISIONS[precision].tolerance)
        )
        by_pair = accuracy[0] if isinstance(accuracy, list) or not hasattr(accuracy, "items") else accuracy
        found = {pair[1]: [each[PREDICTION].value for each in matches] for pair, matches in by_pair.items()}
    return {name: max(errors, key=lambda e: math.inf if math.isnan(e) else e) for name, errors in found.items()}


@dataclass(frozen=True)
class _Measured:
    """A relative L2 error and whether it is within the threshold, as a compare function of Polygraphy returns it."""

    value: float
    allowed: float

    def __bool__(self) -> bool:
        return self.value <= self.allowed


@dataclass(frozen=True)
class _RelativeError:
    """Polygraphy measures absolute norms; the tolerances are relative to the reference's."""

    allowed: float

    def __call__(self, expected: IterationResult, found: IterationResult) -> OrderedDict[str, _Measured]:
        return OrderedDict(
            (name, _Measured(relative_error(found[name], values), self.allowed)) for name, values in expected.items()
        )


class _Runner(BaseRunner):
    """A network as Polygraphy runs it; its output is the part of the prediction that the reference keeps."""

    def __init__(self, name: str, predict: Predict, golden: Golden) -> None:
        super().__init__(name=name)
        self._predict, self._golden = predict, golden

    def get_input_metadata_impl(self) -> TensorMetadata:
        metadata = TensorMetadata()
        metadata.add(X, np.float32, (None, *self._golden.x.shape[2:]))
        metadata.add(T, np.float32, (None,))
        for place, each in enumerate(self._golden.conditions):
            metadata.add(_condition(place), each.dtype.type, (None, *each.shape[2:]))
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, np.ndarray]) -> OrderedDict[str, np.ndarray]:
        self.inference_time = 0.0  # nothing is timed here
        conditions = [feed_dict[_condition(place)] for place in range(len(self._golden.conditions))]
        predicted = self._predict(feed_dict[X], feed_dict[T], *conditions)
        return OrderedDict([(PREDICTION, self._golden.flat(predicted))])


class _Recorded:
    """A network that does not compute the same prediction twice."""

    def __init__(self, predict: Predict) -> None:
        self._predict = predict
        self._known: dict[tuple[bytes, ...], np.ndarray] = {}

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        key = tuple(each.tobytes() for each in arrays)
        if key not in self._known:
            self._known[key] = self._predict(*arrays)
        return self._known[key]


def _condition(place: int) -> str:
    return f"condition_{place}"


def _run_on_cpu(model: onnx.ModelProto, conditions: Sequence[str]) -> Predict:
    options = ort.SessionOptions()
    options.log_severity_level = _SEVERITY_ERROR
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise InputError(
            f"the network in another precision cannot be run by ONNX Runtime ({reason(error)}), so nothing could be "
            "verified; leave out --fp16 or --bf16, or export the network with standard operators of opset 18"
        ) from error
    types = {
        entry.name: helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type) for entry in model.graph.input
    }

    def predict(*arrays: np.ndarray) -> np.ndarray:
        feed = {name: array.astype(types[name]) for name, array in zip((X, T, *conditions), arrays, strict=True)}
        prediction: np.ndarray = session.run([PREDICTION], feed)[0]
        return prediction.astype(np.float32)

    return predict


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Polygraphy reports to standard output, which is for results; a failure is reported by our own table."""
    with contextlib.redirect_stdout(sys.stderr), G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        yield
