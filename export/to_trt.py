"""`python -m export.to_trt`: a checkpoint or an ONNX file to a TensorRT plan, verified, then published."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from commands.program import Report, make_parser, run_program
from export.publication import Exported, accuracy
from export.request import ExportRequest, add_request_flags, as_request, check_out, export_request
from export.source import open_source
from export.tensorrt_flavor import choose_flavor
from export.tensorrt_options import TensorRtOptions, add_options_flags, build_settings, tensorrt_options
from runtime.device.driver import driver_facts
from runtime.process_flags import ProcessFlags

DEFAULT_OUT = Path("unet.plan")
# A plan holds its weights once, and code of the builder's for each kind of GPU.
_SHARE_OF_WEIGHTS, _CODE_BYTES = {"fp32": 1.1, "fp16": 0.6, "bf16": 0.6}, 2**24


def export_trt(
    out: ExportRequest | Path | str = DEFAULT_OUT,
    options: TensorRtOptions | None = None,
    checkpoint: Path | str | None = None,
    onnx_file: Path | str | None = None,
    precision: str = "fp32",
    fold: bool = True,
    flags: ProcessFlags | None = None,
    allow_pickle: bool = False,
    debug: bool = False,
) -> Exported:
    """Build, verify and publish a TensorRT plan: `….plan`, its reference predictions and, last, its sidecar.

    Args:
        out: the file to write, `….plan`; or a request, which holds what follows but the options.
        options: how it is built; None for the defaults.
        checkpoint: any diffusers `DDPMPipeline` folder; its reference is PyTorch.
        onnx_file: instead of a checkpoint; its reference is ONNX Runtime.
        precision: `fp32`, `fp16` or `bf16`.
        fold: replace the time path by tables.
        flags: what an ONNX file does not say of its process.
        allow_pickle, debug: as of `ExportRequest`.

    Returns:
        The file and what was verified of it, which says whether the plan itself ran; the report holds the sidecar too.

    Raises:
        InputError: a source that cannot be used or built, options that do not fit each other, a file that cannot be
            written.
        DeviceUnavailableError: no such builder here, or no GPU for what needs one.
        VerificationError: the network differs from its reference; nothing was written.
    """
    request = as_request(
        out,
        checkpoint=checkpoint,
        onnx=onnx_file,
        precision=precision,
        fold=fold,
        process=flags or ProcessFlags(),
        allow_pickle=allow_pickle,
        debug=debug,
    )
    out, options = request.out, options or TensorRtOptions()
    check_out(request.out, ".plan")
    driver = driver_facts()
    flavor = choose_flavor(options.flavor, driver)
    settings = build_settings(options, flavor, driver, request.precision)
    with open_source(request, share=_SHARE_OF_WEIGHTS[request.precision], more_bytes=_CODE_BYTES) as source:
        from export.tensorrt_plan import PlanRequest, make_plan

        plan = make_plan(source, PlanRequest(request, options, flavor, driver), settings)
    verification = plan.verification
    where = "run on the GPU" if verification.executed else "not run: verified as its network on the CPU"
    report = {
        "summary": (
            f"{out}: {request.precision}, {flavor.title}, {plan.size_bytes / 1e6:.1f} MB, {where}; "
            f"{accuracy(verification.measured)}\nnext: python -m runtime.sample --engine {out}"
        ),
        "plan": str(out),
        "source": str(source.path),
        "size_bytes": plan.size_bytes,
        **plan.sidecar.to_json(),
    }
    return Exported(out, source.path, request.precision, plan.size_bytes, verification, report)


def run(args: argparse.Namespace) -> Report:
    """Do what the command line says. Raises as `export_trt`."""
    request = export_request(args)
    check_out(request.out, ".plan")  # before what the batches say
    return dict(export_trt(request, tensorrt_options(args)).report)


def make_command() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(
        "export.to_trt",
        "Build a TensorRT engine from a checkpoint or an ONNX file, and verify it against float32.",
        "The time path is evaluated once, in float32, and looked up from tables. Nothing is published that fails. "
        "The plan's inputs are x [N, C, H, W] and t [N], its output is prediction. trtexec's spellings work too.",
    )
    precisions = {"fp16": "compute in float16", "bf16": "compute in bfloat16"}
    add_request_flags(parser, DEFAULT_OUT, precisions, out_spellings=("--out", "--saveEngine"))
    add_options_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_program(make_command(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
