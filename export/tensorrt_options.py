"""The options of a TensorRT plan: their flags, and the builder's settings that follow from them on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from diffusion.errors import InputError
from export.batch_profile import Shapes, add_batch_flags, batch_profiles, given_shapes
from export.tensorrt_build import BuildOptions, BuildSettings
from export.tensorrt_flavor import DEFAULT_CAPABILITIES, FLAVOR_FLAGS, load_flavor, target_capabilities
from export.timing_cache import default_timing_cache
from runtime.device.driver import DriverFacts, require_gpu
from runtime.formats.flavor import RTX, TENSORRT, Flavor
from runtime.formats.plan_description import HARDWARE_COMPATIBILITIES

GROUP_NORMS = ("instance", "group")
OPTIMIZATION_LEVELS = range(6)
_MAX_DIGITS = 9  # of mebibytes: TensorRT's sizes have 63 bits
_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True, kw_only=True)
class TensorRtOptions(BuildOptions):
    """How a plan is built, beside what an `ExportRequest` says.

    Attributes:
        flavor: the builder, one of `FLAVOR_FLAGS`.
        group_norm: write group normalizations as `instance` normalization, or as `group` normalization of opset 21.
        shapes: input shapes in trtexec's spelling, by flag, to be checked against the network.
        compute_capabilities: of TensorRT-RTX, the GPUs that a plan is for, such as `8.6,8.9`; None for the usual ones
            and the GPU here.
        timing_cache: of TensorRT, a file of kernels' times; None for one in the user's cache folder, `none` for none.

    Raises:
        InputError: a value that no builder has, or a static batch with several sizes.
    """

    flavor: str = FLAVOR_FLAGS[0]
    group_norm: str = GROUP_NORMS[0]
    shapes: Mapping[str, Shapes] = field(default_factory=dict)
    compute_capabilities: str | None = None
    timing_cache: str | None = None

    def __post_init__(self) -> None:
        choices = {
            "flavor": FLAVOR_FLAGS,
            "group_norm": GROUP_NORMS,
            "hardware_compatibility": HARDWARE_COMPATIBILITIES,
            "optimization_level": (None, *OPTIMIZATION_LEVELS),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(map(str, known))}")
        if not self.profiles:
            raise InputError("profiles is empty, expected at least one")
        if self.static and (len(self.profiles) > 1 or self.profiles[0].min != self.profiles[0].max):
            raise InputError("static with several batch sizes, expected one profile whose min, opt and max are equal")


def build_settings(options: TensorRtOptions, flavor: Flavor, driver: DriverFacts, precision: str) -> BuildSettings:
    """The builder's settings, but for the shape of a sample, which is known when the network is.

    Args:
        options: what was asked for.
        flavor: the builder.
        driver: of this machine.
        precision: of the engine.

    Raises:
        InputError: options that the builder does not have.
        DeviceUnavailableError: no GPU for an option that needs one, or the builder cannot be loaded.
    """
    is_rtx = flavor is RTX
    if is_rtx:
        _refuse_on_rtx(options)
    capabilities = target_capabilities(flavor, options.compute_capabilities, driver, precision)
    if options.layers is not None:
        require_gpu(driver, "--export-layers", "leave it out, or build on a machine with one")
    version = str(load_flavor(flavor).__version__)  # what is wrong with it is known before any work
    cache: Path | None = None
    if not is_rtx and options.timing_cache != "none":
        named = options.timing_cache
        cache = default_timing_cache(version, capabilities[0]) if named is None else Path(named)
    asked = {each.name: getattr(options, each.name) for each in fields(BuildOptions)}
    return BuildSettings(
        title=flavor.title, is_rtx=is_rtx, chw=(), capabilities=capabilities, timing_cache=cache, **asked
    )


def _refuse_on_rtx(options: TensorRtOptions) -> None:
    asked = {
        "--version-compatible": options.version_compatible,
        "--strip": options.strip,
        "--refit": options.refit,
        "--hardware-compatibility": options.hardware_compatibility != "none",
        "--timing-cache": options.timing_cache not in (None, "none"),
    }
    refused = [flag for flag, given in asked.items() if given]
    if refused:
        raise InputError(
            f"{', '.join(refused)}: for TensorRT alone, found {RTX.title}, whose plans run on every GPU of "
            f"--compute-capabilities as they are; leave it out, or give --flavor {TENSORRT.flag}"
        )


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
    return TensorRtOptions(
        profiles=profiles,
        static=static,
        shapes=given_shapes(args),
        flavor=args.flavor,
        group_norm=args.group_norm,
        compute_capabilities=args.compute_capabilities,
        workspace_bytes=args.workspace,
        optimization_level=args.builder_optimization_level,
        timing_cache=args.timing_cache,
        version_compatible=args.version_compatible,
        strip=args.strip,
        refit=args.refit,
        hardware_compatibility=args.hardware_compatibility,
        layers=args.export_layers,
        verbose=args.verbose,
    )


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
    group.add_argument("--verbose", action="store_true", help="print the builder's whole log")
    # trtexec needs these flags; here they are always on.
    for spelling in ("--noTF32", "--stronglyTyped", "--skipInference", "--buildOnly"):
        group.add_argument(spelling, action="store_true", help=argparse.SUPPRESS)


def _optimization_level(text: str) -> int:
    if text not in ("0", "1", "2", "3", "4", "5"):
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
