"""`python -m export.to_onnx`: a checkpoint folder to one ONNX file, checked against PyTorch before it is published.

In float32, or mixed with fp16 or bf16.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.idle_threads import let_idle_threads_sleep
from commands.program import Report, make_parser, run_program, say
from commands.whole_files import whole_file
from diffusion.errors import InputError
from export.engine_files import MOST_ONNX_BYTES, check_out
from runtime.engines.checkpoint_folder import read_checkpoint_folder
from runtime.formats.precision import ENGINE_PRECISIONS

if TYPE_CHECKING:
    import onnx

    from runtime.engines.torch_checkpoint import Checkpoint

DEFAULT_CHECKPOINT, DEFAULT_OUT = Path("runs/digits"), Path("unet.onnx")
# Every engine builder takes opset 18; from 21 on GroupNorm is one node, which ONNX Runtime takes apart again.
OPSETS, DEFAULT_OPSET = range(18, 22), 18


def export_onnx(
    checkpoint_folder: Path,
    out: Path,
    opset: int = DEFAULT_OPSET,
    allow_pickle: bool = False,
    debug: bool = False,
    precision: str = "fp32",
) -> dict[str, Any]:
    """Export, check and publish.

    Args:
        checkpoint_folder: any diffusers `DDPMPipeline` folder.
        out: the file to write; it appears whole, or stays as it was.
        opset: of the ONNX standard, one of `OPSETS`.
        allow_pickle: read weights from a pickle where there is no safetensors file.
        debug: let PyTorch's exporter report on standard error.
        precision: `fp32`; or `fp16` or `bf16`, with the time path in tables, so that t is int64, and with x and the
            prediction in float32. bf16 raises the opset to 22.

    Returns:
        The report: file, size, hash, opset, nodes by kind, the process and what was compared.

    Raises:
        InputError: a checkpoint that cannot be used, or a file that cannot be written.
        VerificationError: ONNX Runtime and PyTorch disagree; nothing was written.
    """
    if precision not in ENGINE_PRECISIONS:
        raise InputError(f"precision is {precision!r}, expected one of {', '.join(ENGINE_PRECISIONS)}")
    if opset not in OPSETS:
        raise InputError(f"opset is {opset}, expected {OPSETS[0]} to {OPSETS[-1]}; give --opset {DEFAULT_OPSET}")
    check_out(out, ".onnx")
    read_checkpoint_folder(checkpoint_folder)  # a mistake there is known at once: torch takes seconds to import
    say(f"reading {checkpoint_folder}")
    let_idle_threads_sleep()
    from runtime.engines.torch_checkpoint import load_checkpoint

    checkpoint = load_checkpoint(checkpoint_folder, allow_pickle)
    with whole_file(out) as temporary:
        if precision == "fp32":
            report = _write_checked(checkpoint, temporary, opset, debug)
        else:
            report = _write_low_precision(checkpoint, temporary, opset, precision, str(out), debug)
    report["onnx"] = str(out)
    report["summary"] = _summary(out, report) if precision == "fp32" else _low_precision_summary(out, report)
    return report


def _summary(out: Path, report: dict[str, Any]) -> str:
    verification = report["verification"]
    return (
        f"{out}: {report['size_bytes'] / 1e6:.1f} MB, opset {report['opset']}, {report['num_nodes']} nodes; "
        f"at most {verification['worst_relative_error']:.1e} from PyTorch "
        f"(relative, {len(verification['samples'])} samples, tolerance {verification['tolerance']:g})\n"
        f"next: python -m runtime.sample --engine {out}"
    )


def _low_precision_summary(out: Path, report: dict[str, Any]) -> str:
    verification, chain = report["verification"], report["verification"]["chain"]
    # ONNX Runtime's CPU provider has no bf16 convolutions.
    how = "" if verification["executed"] else "; bf16 was not run but emulated, as it cannot be run on a CPU"
    return (
        f"{out}: {report['precision']}, {report['size_bytes'] / 1e6:.1f} MB, opset {report['opset']}, "
        f"{report['num_nodes']} nodes; predictions at most {verification['worst_relative_error']:.1e} from "
        f"{verification['reference']} (median {verification['median_relative_error']:.1e}, "
        f"{len(verification['timesteps'])} timesteps), x_0 after {chain['steps']} steps {chain['relative_error']:.1e} "
        f"(tolerance {verification['tolerance']:g}){how}\n"
        f"next: python -m runtime.sample --engine {out}{'' if verification['executed'] else ' --device cuda'}"
    )


def check_size(checkpoint: Checkpoint) -> None:
    """Raises InputError if the weights do not fit into one ONNX file."""
    weight_bytes = 4 * checkpoint.num_parameters
    if weight_bytes > MOST_ONNX_BYTES:
        raise InputError(
            f"{checkpoint.folder}: {weight_bytes / 1e9:.1f} GB of float32 weights, expected at most "
            f"{MOST_ONNX_BYTES / 1e9:.1f} GB, as one ONNX file can hold; choose a smaller network"
        )


def _trace(checkpoint: Checkpoint, opset: int, debug: bool) -> onnx.ModelProto:
    from export.network_trace import trace_network
    from export.onnx_graph import finish_graph

    check_size(checkpoint)
    say(f"tracing the network ({checkpoint.num_parameters:,} parameters) at opset {opset}")
    return finish_graph(trace_network(checkpoint, opset, debug), checkpoint.process)


def _write_checked(checkpoint: Checkpoint, path: Path, opset: int, debug: bool) -> dict[str, Any]:
    from export.onnx_check import verify_onnx

    report = _write(_trace(checkpoint, opset, debug), checkpoint, path)
    say("comparing ONNX Runtime with PyTorch")
    return report | {"verification": verify_onnx(path, checkpoint.process, checkpoint.predict).to_json()}


def _write_low_precision(
    checkpoint: Checkpoint, path: Path, opset: int, precision: str, out: str, debug: bool
) -> dict[str, Any]:
    import torch

    from export.low_precision_onnx import make_low_precision_onnx

    model, reference = _trace(checkpoint, opset, debug), f"PyTorch {torch.__version__} (fp32, CPU)"
    made = make_low_precision_onnx(model, checkpoint.process, checkpoint.predict, precision, reference, out, debug)
    return _write(made.model, checkpoint, path) | {
        "precision": precision,
        "time_path": {"folded": True, **made.folding.to_json()},
        "kept_in_float32": list(made.kept),
        "verification": made.verification.record().to_json(),
    }


def _write(model: onnx.ModelProto, checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """Write the file; returns what the report says of it."""
    from export.onnx_graph import count_ops

    content, ops = model.SerializeToString(deterministic=True), count_ops(model)
    path.write_bytes(content)
    return {
        "checkpoint": str(checkpoint.folder),
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "opset": model.opset_import[0].version,
        "num_nodes": sum(ops.values()),
        "nodes": ops,
        "process": checkpoint.process.to_json(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(
        "export.to_onnx",
        "Export a checkpoint to ONNX and check it against PyTorch at batches of 1, 2 and 5 and timesteps 0 to T−1.",
        "The file carries the process (schedule, prediction, variance, clip) in its metadata. In fp16 and bf16 it is "
        "checked on states of real chains instead, and over a chain of 20 steps; nothing is published that fails.",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=DEFAULT_CHECKPOINT,
        metavar="FOLDER",
        help=f"a folder from train.run or any diffusers DDPMPipeline folder (default {DEFAULT_CHECKPOINT})",
    )
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, metavar="FILE", help=f"the file to write (default {DEFAULT_OUT})"
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--fp16", action="store_true", help="compute in float16, but for x and the prediction")
    precision.add_argument("--bf16", action="store_true", help="compute in bfloat16 likewise (opset 22, GPUs alone)")
    parser.add_argument(
        "--opset", type=int, choices=OPSETS, default=DEFAULT_OPSET, help=f"ONNX opset (default {DEFAULT_OPSET})"
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read weights from a .bin, tensors only, where there is no safetensors file",
    )

    def run(args: argparse.Namespace) -> Report:
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
        return export_onnx(args.checkpoint, args.out, args.opset, args.allow_pickle, args.debug, precision)

    return run_program(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
