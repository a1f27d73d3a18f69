"""`python -m export.to_trt`: a checkpoint or an ONNX file to a TensorRT plan, verified, then published."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from commands.output_lock import sole_writer
from commands.program import Report, make_parser, run_program
from diffusion.errors import InputError
from export.batch_profile import add_batch_flags, batch_profiles, given_shapes
from export.engine_files import check_out
from export.source import add_source_flags, read_source
from export.tensorrt_build import BuildSettings
from export.tensorrt_flavor import (
    DEFAULT_CAPABILITIES,
    FLAVOR_FLAGS,
    choose_flavor,
    load_flavor,
    target_capabilities,
)
from export.timing_cache import default_timing_cache
from runtime.device.driver import DriverFacts, driver_facts, require_gpu
from runtime.formats.batch_profile import BatchProfile
from runtime.formats.flavor import RTX, TENSORRT, Flavor
from runtime.formats.plan_description import HARDWARE_COMPATIBILITIES
from runtime.process_flags import add_process_flags, process_flags

DEFAULT_OUT = Path("unet.plan")
GROUP_NORMS = ("instance", "group")
_MOST_DIGITS = 9  # of mebibytes: TensorRT's sizes have 63 bits
_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def run(args: argparse.Namespace) -> Report:
    """Do what the command line says.

    Raises:
        InputError: a source that cannot be used or built, flags that do not fit each other, a file that cannot be
            written.
        DeviceUnavailableError: no such builder here, or no GPU for what needs one.
        VerificationError: the network differs from its reference; nothing was written.
    """
    out: Path = args.out
    check_out(out, ".plan")
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    profiles, static = batch_profiles(args)
    driver = driver_facts()
    flavor = choose_flavor(args.flavor, driver)
    settings = _settings(args, flavor, driver, precision, profiles, static)
    load_flavor(flavor)  # what is wrong with it is known before any work
    with sole_writer(out):
        source = read_source(args.checkpoint, args.onnx, process_flags(args), args.allow_pickle, args.debug)
        from export.tensorrt_plan import PlanRequest, make_plan

        request = PlanRequest(
            out, flavor, driver, precision, args.fold, args.group_norm, given_shapes(args), args.debug
        )
        plan = make_plan(source, request, settings)
    measured, verification = plan.verification.measured, plan.sidecar.verification
    where = "run on the GPU" if verification.executed else "not run: verified as its network on the CPU"
    return {
        "summary": (
            f"{out}: {precision}, {flavor.title}, {plan.size_bytes / 1e6:.1f} MB, {where}; predictions at most "
            f"{measured.worst:.1e} from {measured.reference} (median {measured.median:.1e}, {len(measured.errors)} "
            f"timesteps), x_0 after {measured.chain_steps} steps {measured.chain_error:.1e} "
            f"(tolerance {measured.tolerance:g})\nnext: python -m runtime.sample --engine {out}"
        ),
        "plan": str(out),
        "source": str(source.path),
        "size_bytes": plan.size_bytes,
        **plan.sidecar.to_json(),
    }


def _settings(
    args: argparse.Namespace,
    flavor: Flavor,
    driver: DriverFacts,
    precision: str,
    profiles: tuple[BatchProfile, ...],
    static: bool,
) -> BuildSettings:
    is_rtx = flavor is RTX
    if is_rtx:
        _refuse_on_rtx(args)
    capabilities = target_capabilities(flavor, args.compute_capabilities, driver, precision)
    if args.export_layers is not None:
        require_gpu(driver, "--export-layers", "leave it out, or build on a machine with one")
    cache: Path | None = None
    if not is_rtx and args.timing_cache != "none":
        version = str(load_flavor(flavor).__version__)
        named = args.timing_cache is not None
        cache = Path(args.timing_cache) if named else default_timing_cache(version, capabilities[0])
    return BuildSettings(
        title=flavor.title,
        is_rtx=is_rtx,
        chw=(),  # known when the network is
        profiles=profiles,
        static=static,
        capabilities=capabilities,
        workspace_bytes=args.workspace,
        optimization_level=args.builder_optimization_level,
        version_compatible=args.version_compatible,
        strip=args.strip,
        refit=args.refit,
        hardware_compatibility=args.hardware_compatibility,
        timing_cache=cache,
        layers=args.export_layers,
        verbose=args.verbose,
    )


def _refuse_on_rtx(args: argparse.Namespace) -> None:
    asked = {
        "--version-compatible": args.version_compatible,
        "--strip": args.strip,
        "--refit": args.refit,
        "--hardware-compatibility": args.hardware_compatibility != "none",
        "--timing-cache": args.timing_cache not in (None, "none"),
    }
    refused = [flag for flag, given in asked.items() if given]
    if refused:
        raise InputError(
            f"{', '.join(refused)}: for TensorRT alone, found {RTX.title}, whose plans run on every GPU of "
            f"--compute-capabilities as they are; leave it out, or give --flavor {TENSORRT.flag}"
        )


def _optimization_level(text: str) -> int:
    if text not in ("0", "1", "2", "3", "4", "5"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected 0 to 5")
    return int(text)


def _mebibytes(text: str) -> int:
    """`4096`, `4096M`, `4G` or trtexec's `workspace:4096M` → bytes; MiB where no unit is given."""
    number = text.removeprefix("workspace:")
    unit = _UNITS.get(number[-1:].upper())
    digits = number if unit is None else number[:-1]
    if not digits.isdecimal() or len(digits) > _MOST_DIGITS or int(digits) == 0:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a size such as 4096 (MiB), 4096M or 4G")
    return int(digits) * (unit or _UNITS["M"])


def make_command() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(
        "export.to_trt",
        "Build a TensorRT engine from a checkpoint or an ONNX file, and verify it against float32.",
        "The time path is evaluated once, in float32, and looked up from tables. Nothing is published that fails. "
        "The plan's inputs are x [N, C, H, W] and t [N], its output is prediction. trtexec's spellings work too.",
    )
    add_source_flags(parser)
    parser.add_argument(
        "--out",
        "--saveEngine",
        type=Path,
        default=DEFAULT_OUT,
        metavar="FILE",
        help=f"the file to write (default {DEFAULT_OUT})",
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--fp16", action="store_true", help="compute in float16")
    precision.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument(
        "--flavor",
        choices=FLAVOR_FLAGS,
        default="auto",
        help="the builder (default: the one that is installed and fits the GPU that is here)",
    )
    parser.add_argument(
        "--no-fold-time", dest="fold", action="store_false", help="let the engine compute the time path at every step"
    )
    parser.add_argument(
        "--group-norm",
        choices=GROUP_NORMS,
        default=GROUP_NORMS[0],
        help="write group normalizations as InstanceNormalization (default) or as GroupNormalization of opset 21",
    )
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read weights from a .bin where there is no safetensors file"
    )
    add_batch_flags(parser)
    _add_builder_flags(parser)
    add_process_flags(parser)
    return parser


def _add_builder_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("builder")
    group.add_argument(
        "--compute-capabilities",
        "--computeCapabilities",
        metavar="8.6,8.9,…",
        help=f"GPUs that a plan of {RTX.title} is for (default {','.join(DEFAULT_CAPABILITIES)} and the GPU here)",
    )
    group.add_argument(
        "--workspace",
        "--memPoolSize",
        type=_mebibytes,
        metavar="MIB",
        help="most scratch memory on the GPU, in MiB or with a unit (default: the builder's)",
    )
    group.add_argument(
        "--builder-optimization-level",
        "--builderOptimizationLevel",
        type=_optimization_level,
        metavar="0..5",
        help="how long to look for fast kernels (default: the builder's)",
    )
    group.add_argument(
        "--timing-cache",
        "--timingCacheFile",
        metavar="FILE|none",
        help="where TensorRT keeps what it measured (default: a file in the user's cache folder)",
    )
    group.add_argument(
        "--version-compatible", "--versionCompatible", action="store_true", help="for later TensorRT, and the lean one"
    )
    group.add_argument("--strip", "--stripWeights", action="store_true", help="leave the weights out of the plan")
    group.add_argument("--refit", action="store_true", help="let the weights be changed later")
    group.add_argument(
        "--hardware-compatibility",
        choices=HARDWARE_COMPATIBILITIES,
        default=HARDWARE_COMPATIBILITIES[0],
        help="let a plan of TensorRT run on other GPUs than this one",
    )
    group.add_argument(
        "--export-layers", "--exportLayerInfo", type=Path, metavar="FILE", help="write the plan's layers as JSON"
    )
    group.add_argument("--verbose", action="store_true", help="print all that the builder has to say")
    # What trtexec needs to be told and is always so here.
    for spelling in ("--noTF32", "--stronglyTyped", "--skipInference", "--buildOnly"):
        group.add_argument(spelling, action="store_true", help=argparse.SUPPRESS)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_program(make_command(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
