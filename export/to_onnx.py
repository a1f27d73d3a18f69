"""`python -m export.to_onnx`: a checkpoint folder to one ONNX file, checked against PyTorch before it is published.

In float32, or mixed with fp16 or bf16.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.program import Report, make_parser, run_program, say
from commands.whole_files import whole_file
from diffusion.errors import InputError
from export.publication import Exported, Verified, accuracy, check_passed
from export.request import DEFAULT_CHECKPOINT, ExportRequest, add_request_flags, as_request, check_out, export_request
from export.source import DEFAULT_OPSET, OPSETS, Source, open_source
from runtime.engines.onnx_precision import PRECISION_KEY
from runtime.formats.onnx_seal import sealed

if TYPE_CHECKING:
    import onnx

DEFAULT_OUT = Path("unet.onnx")
# What AutoCast does not carry over.
_DESCRIPTIVE = ("producer_name", "producer_version", "domain", "model_version", "doc_string")


def export_onnx(
    checkpoint: ExportRequest | Path | str = DEFAULT_CHECKPOINT,
    out: Path | str = DEFAULT_OUT,
    opset: int = DEFAULT_OPSET,
    allow_pickle: bool = False,
    debug: bool = False,
    precision: str = "fp32",
) -> Exported:
    """Export a checkpoint to one ONNX file, check it and publish it.

    In fp32 the file computes its time path and takes t as float32. In fp16 and bf16 the time path is in tables, so that
    t is int64; x and the prediction are float32. bf16 raises the opset to 22.

    Args:
        checkpoint: any diffusers `DDPMPipeline` folder; or a request, which holds what follows but the opset.
        out: the file to write, `….onnx`.
        opset: of the ONNX standard, one of `OPSETS`.
        allow_pickle, debug, precision: as of `ExportRequest`.

    Returns:
        The file and what was compared; the report holds hash, opset, nodes by kind and the process too.

    Raises:
        InputError: a checkpoint that cannot be used, or a file that cannot be written.
        VerificationError: ONNX Runtime and PyTorch disagree; nothing was written.
    """
    options = {"precision": precision, "allow_pickle": allow_pickle, "debug": debug}
    if isinstance(checkpoint, ExportRequest):
        request = as_request(checkpoint, **options)
    else:
        request = as_request(out, checkpoint=checkpoint, **options)
    if opset not in OPSETS:
        raise InputError(f"opset is {opset}, expected {OPSETS[0]} to {OPSETS[-1]}; give --opset {DEFAULT_OPSET}")
    check_out(request.out, ".onnx")
    if request.onnx is not None:
        raise InputError(f"{request.onnx}: is ONNX already, expected a checkpoint; make an engine of it instead")
    if not request.fold:
        raise InputError("fold is False, expected True: an ONNX file's precision alone says how its time path is kept")
    write = _write_checked if request.precision == "fp32" else _write_low_precision
    share = 1.0 if request.precision == "fp32" else 0.6
    with open_source(request, opset, share) as source, whole_file(request.out) as temporary:
        verification, report = write(source, temporary, request)
    return Exported(request.out, source.path, request.precision, report["size_bytes"], verification, report)


def _write_checked(source: Source, path: Path, request: ExportRequest) -> tuple[Verified, dict[str, Any]]:
    from export.onnx_check import verify_onnx

    report = _write(source.finished(source.model), source, path, request.out, "fp32")
    say("comparing ONNX Runtime with PyTorch")
    verification = verify_onnx(path, source.process, source.predict)
    summary = (
        f"{request.out}: {report['size_bytes'] / 1e6:.1f} MB, opset {report['opset']}, {report['num_nodes']} nodes; "
        f"at most {verification.worst:.1e} from PyTorch "
        f"(relative, {len(verification.errors)} samples, tolerance {verification.tolerance:g})\n"
        f"next: python -m runtime.sample --engine {request.out}"
    )
    return verification, report | {"verification": verification.to_json(), "summary": summary}


def _write_low_precision(source: Source, path: Path, request: ExportRequest) -> tuple[Verified, dict[str, Any]]:
    """Float32 at its ends, the time path in tables; any strongly typed TensorRT build takes it too."""
    from export.fold_time import fold_time
    from export.low_precision import lower_precision, other_precision
    from export.normalization import in_cuda_bf16_form
    from export.plan_verification import verify_network

    out, precision, process = str(request.out), request.precision, source.process
    folded, folding = fold_time(source.model, process.schedule.num_train_timesteps, out)
    golden = source.golden(precision)
    keep: tuple[str, ...] = ()
    if precision == "bf16":
        folded, keep = in_cuda_bf16_form(folded)
    names = [condition.name for condition in process.conditions]
    mixed = lower_precision(folded, precision, golden, out, keep, True, request.debug, names)
    model = _described(source.finished(mixed.model), source.model, precision)
    say(f"verifying the {precision} network on the CPU")
    verification = verify_network(model, golden, process, precision, source.reference)
    # ONNX Runtime's CPU provider runs fp16 graphs, though it rounds less often than a GPU; it has no bf16 convolutions.
    verification = replace(verification, executed=precision == "fp16")
    check_passed(request, source.reference, verification, other_precision(precision))
    report = _write(model, source, path, request.out, precision)
    how = "" if verification.executed else "; bf16 was not run but emulated, as it cannot be run on a CPU"
    summary = (
        f"{out}: {precision}, {report['size_bytes'] / 1e6:.1f} MB, opset {report['opset']}, "
        f"{report['num_nodes']} nodes; {accuracy(verification)}{how}\n"
        f"next: python -m runtime.sample --engine {out}{'' if verification.executed else ' --device cuda'}"
    )
    return verification, report | {
        "precision": precision,
        "time_path": {"folded": True, **folding.to_json()},
        "kept_in_float32": list(mixed.kept),
        "verification": verification.record().to_json(),
        "summary": summary,
    }


def _described(model: onnx.ModelProto, original: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The network with its original's description and metadata, and the property that names its precision."""
    import onnx

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


def _write(model: onnx.ModelProto, source: Source, path: Path, out: Path, precision: str) -> dict[str, Any]:
    """Write the file; returns its part of the report."""
    from export.onnx_graph import count_ops

    content, ops = sealed(model.SerializeToString(deterministic=True), precision), count_ops(model)
    path.write_bytes(content)
    return {
        "onnx": str(out),
        "checkpoint": str(source.path),
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "opset": model.opset_import[0].version,
        "num_nodes": sum(ops.values()),
        "nodes": ops,
        "process": source.process.to_json(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(
        "export.to_onnx",
        "Export a checkpoint to ONNX and check it against PyTorch at batches of 1, 2 and 5 and timesteps 0 to T−1.",
        "The file carries the process (schedule, prediction, variance, clip) in its metadata. In fp16 and bf16 it is "
        "checked on states of real chains instead, and over a chain of 20 steps; nothing is published that fails.",
    )
    precisions = {
        "fp16": "compute in float16, but for x and the prediction",
        "bf16": "compute in bfloat16 likewise (opset 22, GPUs alone)",
    }
    add_request_flags(parser, DEFAULT_OUT, precisions, of_onnx=False)
    parser.add_argument(
        "--opset", type=int, choices=OPSETS, default=DEFAULT_OPSET, help=f"ONNX opset (default {DEFAULT_OPSET})"
    )

    def run(args: argparse.Namespace) -> Report:
        return dict(export_onnx(export_request(args), opset=args.opset).report)

    return run_program(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
