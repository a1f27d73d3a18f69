"""`python -m export.mlp_to_onnx`: a small network of `train.swiss_roll` or `train.binary` to ONNX, checked like a UNet.

A Gaussian one follows the network contract to the letter, so `runtime.sample` runs it as it runs a UNet. A
binomial one has the same inputs and output under a process of kind `binomial`, which `runtime.sample_bits` reads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.locks import sole_writer
from commands.program import Report, make_parser, run_program, say
from commands.whole_files import whole_file
from ddpm_rt.own_packages import import_own_packages
from diffusion.binomial import BinomialProcess
from diffusion.process import METADATA_KEY, Process
from export.publication import Exported
from export.request import check_out
from runtime.formats.onnx_seal import sealed
from runtime.formats.precision import FP32

if TYPE_CHECKING:
    from export.onnx_check import Verification
    from train.mlp import TrainedMlp

DEFAULT_CHECKPOINT, OPSET = Path("runs/swiss_roll"), 18


def export_mlp(folder: Path, out: Path | None = None) -> Exported:
    """Export, compare with PyTorch, publish.

    Args:
        folder: as `train.mlp` writes it.
        out: the file; None for the folder's name with `.onnx`, in the current folder.

    Returns:
        The file and what was compared; the report holds hash and process too.

    Raises:
        InputError: a folder that cannot be used, or a file that cannot be written.
        VerificationError: ONNX Runtime and PyTorch disagree; nothing was written.
    """
    out = Path(f"{folder.resolve().name}.onnx") if out is None else out
    check_out(out, ".onnx")
    import_own_packages("train")
    from train.mlp import read_mlp

    trained = read_mlp(folder)
    with sole_writer(out), whole_file(out) as temporary:
        verification, report = _write_checked(trained, temporary)
    binomial = isinstance(trained.process, BinomialProcess)
    command = "runtime.sample_bits" if binomial else "runtime.sample --format npy"
    summary = (
        f"{out}: {report['size_bytes'] / 1e3:.0f} kB; at most {verification.worst:.1e} from PyTorch "
        f"(relative, {len(verification.errors)} samples, tolerance {verification.tolerance:g})\n"
        f"next: python -m {command} --engine {out}"
    )
    report = {"onnx": str(out), **report, "summary": summary}
    return Exported(out, folder, "fp32", report["size_bytes"], verification, report)


def _write_checked(trained: TrainedMlp, path: Path) -> tuple[Verification, dict[str, Any]]:
    import onnx

    from export.onnx_check import verify_onnx
    from export.onnx_graph import finish_graph, trace_module

    process = trained.process
    # The check and the clean-up ask a process for its shape and its timesteps alone.
    frame = process if isinstance(process, Process) else Process(process.sample, process.schedule, "sample")
    say(f"tracing {trained.folder} at opset {OPSET}")
    model = finish_graph(trace_module(trained.network, process.sample.chw, OPSET), frame)
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(process.to_json(), sort_keys=True)})
    content = sealed(model.SerializeToString(deterministic=True), FP32.name)
    path.write_bytes(content)
    say("comparing ONNX Runtime with PyTorch")
    verification = verify_onnx(path, frame, trained.predict)
    return verification, {
        "checkpoint": str(trained.folder),
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "opset": OPSET,
        "process": process.to_json(),
        "verification": verification.to_json(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(
        "export.mlp_to_onnx",
        "Export a small network to ONNX and check it against PyTorch at batches of 1, 2 and 5 and timesteps 0 to T−1.",
        "The file carries the process (schedule, prediction) in its metadata.",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=DEFAULT_CHECKPOINT,
        metavar="FOLDER",
        help=f"from train.swiss_roll or train.binary (default {DEFAULT_CHECKPOINT})",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: the folder's name with .onnx")

    def run(args: argparse.Namespace) -> Report:
        return dict(export_mlp(args.checkpoint, args.out).report)

    return run_program(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
