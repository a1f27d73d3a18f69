"""`python -m export.to_onnx`: a checkpoint folder to one ONNX file, checked against PyTorch before it is published."""

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
from runtime.engines.checkpoint_folder import read_checkpoint_folder

if TYPE_CHECKING:
    from runtime.engines.torch_checkpoint import Checkpoint

DEFAULT_CHECKPOINT, DEFAULT_OUT = Path("runs/digits"), Path("unet.onnx")
# Every engine builder takes opset 18; from 21 on GroupNorm is one node, which ONNX Runtime takes apart again.
OPSETS, DEFAULT_OPSET = range(18, 22), 18
# Protocol Buffers' limit on a message, less room for the graph itself.
_MOST_WEIGHT_BYTES = 2**31 - 2**24


def export_onnx(
    checkpoint_folder: Path,
    out: Path,
    opset: int = DEFAULT_OPSET,
    allow_pickle: bool = False,
    debug: bool = False,
) -> dict[str, Any]:
    """Export, check and publish.

    Args:
        checkpoint_folder: any diffusers `DDPMPipeline` folder.
        out: the file to write; it appears whole, or stays as it was.
        opset: of the ONNX standard, one of `OPSETS`.
        allow_pickle: read weights from a pickle where there is no safetensors file.
        debug: let PyTorch's exporter report on standard error.

    Returns:
        The report: file, size, hash, opset, nodes by kind, the process and what was compared.

    Raises:
        InputError: a checkpoint that cannot be used, or a file that cannot be written.
        VerificationError: ONNX Runtime and PyTorch disagree; nothing was written.
    """
    if opset not in OPSETS:
        raise InputError(f"opset is {opset}, expected {OPSETS[0]} to {OPSETS[-1]}; give --opset {DEFAULT_OPSET}")
    if out.suffix != ".onnx":
        raise InputError(f"{out}: the name ends in {out.suffix!r}, expected '.onnx'; choose another name with --out")
    if out.is_dir():
        raise InputError(f"{out}: is a folder, expected the name of a file; choose another name with --out")
    read_checkpoint_folder(checkpoint_folder)  # a mistake there is known at once: torch takes seconds to import
    say(f"reading {checkpoint_folder}")
    let_idle_threads_sleep()
    from runtime.engines.torch_checkpoint import load_checkpoint

    checkpoint = load_checkpoint(checkpoint_folder, allow_pickle)
    with whole_file(out) as temporary:
        report = _write_checked(checkpoint, temporary, opset, debug)
    report["onnx"] = str(out)
    report["summary"] = (
        f"{out}: {report['size_bytes'] / 1e6:.1f} MB, opset {opset}, {report['num_nodes']} nodes; "
        f"at most {report['verification']['worst_relative_error']:.1e} from PyTorch "
        f"(relative, {len(report['verification']['samples'])} samples, "
        f"tolerance {report['verification']['tolerance']:g})\n"
        f"next: python -m runtime.sample --engine {out}"
    )
    return report


def check_size(checkpoint: Checkpoint) -> None:
    """Raises InputError if the weights do not fit into one ONNX file."""
    weight_bytes = 4 * checkpoint.num_parameters
    if weight_bytes > _MOST_WEIGHT_BYTES:
        raise InputError(
            f"{checkpoint.folder}: {weight_bytes / 1e9:.1f} GB of float32 weights, expected at most "
            f"{_MOST_WEIGHT_BYTES / 1e9:.1f} GB, as one ONNX file can hold; choose a smaller network"
        )


def _write_checked(checkpoint: Checkpoint, path: Path, opset: int, debug: bool) -> dict[str, Any]:
    from export.network_trace import trace_network
    from export.onnx_check import verify_onnx
    from export.onnx_graph import count_ops, finish_graph

    check_size(checkpoint)
    say(f"tracing the network ({checkpoint.num_parameters:,} parameters) at opset {opset}")
    model = finish_graph(trace_network(checkpoint, opset, debug), checkpoint.process)
    content = model.SerializeToString(deterministic=True)
    path.write_bytes(content)
    ops = count_ops(model)
    del model
    say("comparing ONNX Runtime with PyTorch")
    verification = verify_onnx(path, checkpoint.process, checkpoint.predict)
    return {
        "checkpoint": str(checkpoint.folder),
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "opset": opset,
        "num_nodes": sum(ops.values()),
        "nodes": ops,
        "process": checkpoint.process.to_json(),
        "verification": verification.to_json(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(
        "export.to_onnx",
        "Export a checkpoint to ONNX and check it against PyTorch at batches of 1, 2 and 5 and timesteps 0 to T−1.",
        "The file carries the process (schedule, prediction, variance, clip) in its metadata.",
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
    parser.add_argument(
        "--opset", type=int, choices=OPSETS, default=DEFAULT_OPSET, help=f"ONNX opset (default {DEFAULT_OPSET})"
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read weights from a .bin, tensors only, where there is no safetensors file",
    )

    def run(args: argparse.Namespace) -> Report:
        return export_onnx(args.checkpoint, args.out, args.opset, args.allow_pickle, args.debug)

    return run_program(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
