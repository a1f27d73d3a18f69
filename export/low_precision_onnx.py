"""An ONNX file that computes in fp16 or bf16: float32 at its ends, the time path in tables, verified before it is used.

It runs wherever the float32 file does and the precision is supported, and any strongly typed TensorRT build takes
it. Its metadata property `ddpm-rt-precision` tells the runtime in what it computes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx
import onnx.helper

from commands.program import say
from export.cuda_bf16_form import in_cuda_bf16_form
from export.low_precision import fold_and_report, lower_precision, other_precision
from export.plan_verification import PlanVerification, verify_network
from export.publication import check_passed
from export.request import ExportRequest
from export.source import Source
from runtime.engines.onnx_precision import PRECISION_KEY

if TYPE_CHECKING:
    from export.fold_time import Folding

# What AutoCast does not carry over.
_DESCRIPTIVE = ("producer_name", "producer_version", "domain", "model_version", "doc_string")


@dataclass(frozen=True)
class LowPrecisionOnnx:
    """A network that passed its gate.

    Attributes:
        model: as it is to be published.
        folding: what was done to its time path.
        kept: names of the nodes that compute in float32.
        verification: `executed` says whether this very graph ran, or only its rounding was emulated.
    """

    model: onnx.ModelProto
    folding: Folding
    kept: tuple[str, ...]
    verification: PlanVerification


def make_low_precision_onnx(source: Source, request: ExportRequest) -> LowPrecisionOnnx:
    """Fold, convert and verify.

    Args:
        source: its graph as `export.onnx_graph.finish_graph` leaves it, the nodes named.
        request: `fp16` or `bf16`, and the file to be.

    Raises:
        InputError: a network that cannot be folded or converted.
        VerificationError: it differs from the reference.
    """
    out, precision, process = str(request.out), request.precision, source.process
    folded, folding = fold_and_report(source.model, process.schedule.num_train_timesteps, out)
    golden = source.golden(precision)
    keep: tuple[str, ...] = ()
    if precision == "bf16":
        folded, keep = in_cuda_bf16_form(folded)
    names = [condition.name for condition in process.conditions]
    mixed = lower_precision(folded, precision, golden, out, keep, True, request.debug, names)
    described = _described(source.finished(mixed.model), source.model, precision)
    say(f"verifying the {precision} network on the CPU")
    verification = verify_network(described, golden, process, precision, source.reference)
    # ONNX Runtime's CPU provider runs fp16 graphs, though it rounds less often than a GPU; bf16 ones it does not.
    verification = replace(verification, executed=precision == "fp16")
    check_passed(request, source.reference, verification, other_precision(precision))
    return LowPrecisionOnnx(described, folding, mixed.kept, verification)


def _described(model: onnx.ModelProto, original: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The network with its original's description and metadata, and the property that names its precision."""
    described = onnx.ModelProto()
    described.CopyFrom(model)
    for field in _DESCRIPTIVE:
        described.ClearField(field)
        if original.HasField(field):
            setattr(described, field, getattr(original, field))
    described.graph.name, described.graph.doc_string = original.graph.name, original.graph.doc_string
    metadata = {entry.key: entry.value for entry in original.metadata_props}
    onnx.helper.set_model_props(described, metadata | {PRECISION_KEY: precision})
    # As of the float32 file: every shape follows from the inputs' alone.
    onnx.shape_inference.infer_shapes(described, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(described, full_check=True)
    return described
