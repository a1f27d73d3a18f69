"""An ONNX file that computes in fp16 or bf16: float32 at its ends, the time path in tables, verified before it is used.

It runs wherever the float32 file does and the precision is to be had, and anybody's strongly typed TensorRT build takes
it. Its metadata property `ddpm-rt-precision` tells the runtime in what it computes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx
import onnx.helper

from commands.errors import VerificationError
from commands.program import say
from diffusion.process import Process
from export.cuda_bf16_form import in_cuda_bf16_form
from export.low_precision import failure, fold_and_report, lower_precision
from export.plan_verification import PlanVerification, verify_network
from runtime.engines.onnx_precision import PRECISION_KEY
from runtime.engines.trajectories import make_golden

if TYPE_CHECKING:
    from export.fold_time import Folding
    from runtime.engines.verification import Predict

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


def make_low_precision_onnx(
    model: onnx.ModelProto,
    process: Process,
    predict: Predict,
    precision: str,
    reference: str,
    out: str,
    debug: bool = False,
) -> LowPrecisionOnnx:
    """Fold, convert and verify.

    Args:
        model: float32, as `export.onnx_graph.finish_graph` leaves it; its nodes are named.
        process: what the network was trained to do.
        predict: the network in float32.
        precision: `fp16` or `bf16`.
        reference: what computes `predict`, for the report.
        out: the file to be, for messages.
        debug: let AutoCast report on standard error.

    Raises:
        InputError: a network that cannot be folded or converted.
        VerificationError: it differs from the reference.
    """
    folded, folding = fold_and_report(model, process.schedule.num_train_timesteps, out)
    say(f"running the reference, {reference}")
    golden = make_golden(process, predict, precision)
    keep: tuple[str, ...] = ()
    if precision == "bf16":
        folded, keep = in_cuda_bf16_form(folded)
    mixed = lower_precision(folded, precision, golden, out, keep, float32_ends=True, debug=debug)
    described = _described(mixed.model, model, precision)
    say(f"verifying the {precision} network on the CPU")
    verification = verify_network(described, golden, process, precision, reference)
    # ONNX Runtime's CPU provider runs fp16 graphs, though it rounds less often than a GPU; bf16 ones it does not.
    verification = replace(verification, executed=precision == "fp16")
    if not verification.passed:
        raise VerificationError(failure(out, precision, True, verification))
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
