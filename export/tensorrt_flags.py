"""The command line flags of a TensorRT plan, in our words and in trtexec's."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from diffusion.errors import InputError
from export.tensorrt_options import (
    DEFAULT_CAPABILITIES,
    DEFAULT_PROFILE,
    FLAVOR_FLAGS,
    GROUP_NORMS,
    OPTIMIZATION_LEVELS,
    Shapes,
    TensorRtOptions,
)
from runtime.formats.batch_profile import BatchProfile
from runtime.formats.flavor import RTX
from runtime.formats.plan_description import HARDWARE_COMPATIBILITIES

_MAX_DIGITS = 9  # of mebibytes: TensorRT's sizes have 63 bits
_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def add_options_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `TensorRtOptions`."""
    parser.add_argument(
        "--flavor",
        choices=FLAVOR_FLAGS,
        default=FLAVOR_FLAGS[0],
        help="the builder (default: the one that is installed and fits the GPU that is here)",
    )
    parser.add_argument(
        "--group-norm",
        choices=GROUP_NORMS,
        default=GROUP_NORMS[0],
        help="write group normalizations as InstanceNormalization (default) or as GroupNormalization of opset 21",
    )
    add_batch_flags(parser)
    _add_builder_flags(parser)


def tensorrt_options(args: argparse.Namespace) -> TensorRtOptions:
    """What `add_options_flags` parsed.

    Raises:
        InputError: flags that exclude each other, or a profile out of order.
    """
    profiles, static = batch_profiles(args)
    given = {each.name: getattr(args, each.name) for each in fields(TensorRtOptions) if each.name in args}
    return TensorRtOptions(**given | {"profiles": profiles, "static": static, "shapes": given_shapes(args)})


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
        dest="workspace_bytes",
        type=_mebibytes,
        metavar="MIB",
        help="most scratch memory on the GPU, in MiB or with a unit (default: the builder's)",
    )
    group.add_argument(
        "--builder-optimization-level",
        "--builderOptimizationLevel",
        dest="optimization_level",
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
        "--export-layers",
        "--exportLayerInfo",
        dest="layers",
        type=Path,
        metavar="FILE",
        help="write the plan's layers as JSON",
    )
    group.add_argument("--verbose", action="store_true", help="print the builder's whole log")
    # trtexec needs these flags; here they are always on.
    for spelling in ("--noTF32", "--stronglyTyped", "--skipInference", "--buildOnly"):
        group.add_argument(spelling, action="store_true", help=argparse.SUPPRESS)


def _optimization_level(text: str) -> int:
    if text not in map(str, OPTIMIZATION_LEVELS):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected 0 to 5")
    return int(text)


def _mebibytes(text: str) -> int:
    """`4096`, `4096M`, `4G` or trtexec's `workspace:4096M` → bytes; MiB where no unit is given."""
    number = text.removeprefix("workspace:")
    unit = _UNITS.get(number[-1:].upper())
    digits = number if unit is None else number[:-1]
    if not digits.isdecimal() or len(digits) > _MAX_DIGITS or int(digits) == 0:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a size such as 4096 (MiB), 4096M or 4G")
    return int(digits) * (unit or _UNITS["M"])


def parse_shapes(text: str) -> Shapes:
    """`x:8x3x32x32,t:8` → sizes by input. Raises ArgumentTypeError."""
    sizes: dict[str, tuple[int, ...]] = {}
    for part in text.split(","):
        name, colon, numbers = part.rpartition(":")
        parts = numbers.split("x")
        if not colon or not all(number.isdecimal() for number in parts):
            raise argparse.ArgumentTypeError(f"found {text!r}, expected shapes such as x:8x3x32x32,t:8")
        sizes[name] = tuple(map(int, parts))
    if len({shape[0] for shape in sizes.values()}) != 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected the same batch for every input")
    return Shapes(sizes)


def parse_profile(text: str) -> BatchProfile:
    """`1,8,64` → a profile. Raises ArgumentTypeError."""
    numbers = text.split(",")
    if len(numbers) != 3 or not all(number.strip().isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected min,opt,max such as 1,8,64")
    try:
        return _profile(*map(int, numbers))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_batch_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `batch_profiles`."""
    group = parser.add_argument_group(
        "batches", f"default: {DEFAULT_PROFILE.min} to {DEFAULT_PROFILE.max}, fastest at {DEFAULT_PROFILE.opt}"
    )
    for name, help_text in (("min", "the smallest"), ("opt", "the one to be fastest at"), ("max", "the largest")):
        group.add_argument(f"--{name}-batch", type=int, metavar="N", help=help_text)
        group.add_argument(
            f"--{name}Shapes",
            dest=f"{name}_shapes",
            type=parse_shapes,
            metavar="x:NxCxHxW,t:N",
            help="the same as trtexec spells it",
        )
    group.add_argument(
        "--profile",
        dest="profiles",
        action="append",
        type=parse_profile,
        metavar="MIN,OPT,MAX",
        help="instead, one profile; may be given several times for several profiles in one plan",
    )
    group.add_argument("--batch", type=int, metavar="N", help="instead, this batch alone, which is faster")
    group.add_argument("--shapes", type=parse_shapes, metavar="x:NxCxHxW,t:N", help="--batch as trtexec spells it")


def batch_profiles(args: argparse.Namespace) -> tuple[tuple[BatchProfile, ...], bool]:
    """What `add_batch_flags` parsed: the profiles, and whether the batch is static.

    Raises:
        InputError: flags that exclude each other, or a profile out of order.
    """
    parts: dict[str, int | None] = {}
    for name in ("min", "opt", "max"):
        plain, shapes = getattr(args, f"{name}_batch"), getattr(args, f"{name}_shapes")
        if plain is not None and shapes is not None:
            raise InputError(f"--{name}-batch and --{name}Shapes say the same thing; give one of them")
        parts[name] = shapes.batch if shapes is not None else plain
    if args.batch is not None and args.shapes is not None:
        raise InputError("--batch and --shapes say the same thing; give one of them")
    batch = args.shapes.batch if args.shapes is not None else args.batch
    given = [
        flag
        for flag, there in (
            ("--batch", batch is not None),
            ("--profile", bool(args.profiles)),
            ("--min-batch, --opt-batch or --max-batch", any(part is not None for part in parts.values())),
        )
        if there
    ]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other; give one of them")
    if batch is not None:
        return (_profile(batch, batch, batch),), True
    if args.profiles:
        return tuple(args.profiles), False
    return (_with_defaults(parts["min"], parts["opt"], parts["max"]),), False


def given_shapes(args: argparse.Namespace) -> dict[str, Shapes]:
    """All shapes that were given in trtexec's spelling, by flag, to be checked against the network."""
    flags = {
        "--minShapes": "min_shapes",
        "--optShapes": "opt_shapes",
        "--maxShapes": "max_shapes",
        "--shapes": "shapes",
    }
    return {flag: getattr(args, name) for flag, name in flags.items() if getattr(args, name) is not None}


def _with_defaults(smallest: int | None, best: int | None, largest: int | None) -> BatchProfile:
    """Defaults move out of the way of what was given: --max-batch 4 alone is 1,4,4."""
    if smallest is None:
        smallest = min(number for number in (DEFAULT_PROFILE.min, best, largest) if number is not None)
    if largest is None:
        largest = max(number for number in (DEFAULT_PROFILE.max, best, smallest) if number is not None)
    if best is None:
        best = max(smallest, min(DEFAULT_PROFILE.opt, largest))
    return _profile(smallest, best, largest)


def _profile(smallest: int, best: int, largest: int) -> BatchProfile:
    try:
        return BatchProfile(smallest, best, largest)
    except InputError as error:
        raise InputError(f"{error}; give --min-batch, --opt-batch and --max-batch in that order") from None
