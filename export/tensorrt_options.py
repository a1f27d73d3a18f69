"""The options of a TensorRT plan: which builder, and the builder's settings that follow from them on this machine."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from commands.errors import DeviceUnavailableError, reason
from diffusion.errors import InputError
from runtime.device.driver import DriverFacts, require_gpu
from runtime.engines.cache_folder import can_keep, user_cache_folder
from runtime.formats.batch_profile import BatchProfile
from runtime.formats.flavor import FLAVORS, RTX, TENSORRT, Flavor
from runtime.formats.plan_description import HARDWARE_COMPATIBILITIES

FLAVOR_FLAGS = ("auto", *(flavor.flag for flavor in FLAVORS.values()))

# What TensorRT-RTX runs on, from its documentation ("CPU-Only AOT and TensorRT-RTX Engines"); 7.5 with fp16 alone.
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
DEFAULT_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
DEFAULT_PROFILE = BatchProfile()
GROUP_NORMS = ("instance", "group")
OPTIMIZATION_LEVELS = range(6)


@dataclass(frozen=True)
class Shapes:
    """A profile's shapes as trtexec spells them, such as `x:8x3x32x32,t:8`, by input."""

    sizes: Mapping[str, tuple[int, ...]]

    @property
    def batch(self) -> int:
        """The first size, which all inputs share."""
        return next(iter(self.sizes.values()))[0]

    def check(self, flag: str, expected: Mapping[str, Sequence[int]]) -> None:
        """Raises InputError if the sizes behind the batch are not the network's.

        Args:
            flag: for the error.
            expected: by input, the sizes behind the batch.
        """
        for name, sizes in self.sizes.items():
            if name not in expected:
                raise InputError(
                    f"{flag}: the network has no input {name!r}, expected {' and '.join(expected)}; "
                    "name the inputs so, or give --max-batch"
                )
            if list(sizes[1:]) != list(expected[name]):
                wanted = "x".join(map(str, ["N", *expected[name]]))
                raise InputError(
                    f"{flag}: {name} is {'x'.join(map(str, sizes))}, expected {wanted}; the network's size is fixed"
                )


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """The user's options that go to the builder unchanged.

    Attributes:
        profiles: batches, one optimization profile each.
        static: whether the graph's batch is fixed; then no profile is needed.
        workspace_bytes: upper limit on a plan's scratch memory; None for the builder's own limit.
        optimization_level: 0 to 5; None for the builder's own.
        version_compatible, strip, refit: TensorRT alone.
        hardware_compatibility: `none`, `ampere_plus` or `same_compute_capability`; TensorRT alone.
        layers: where the engine inspector's JSON goes; None for nowhere.
        verbose: print the builder's whole log.
    """

    profiles: tuple[BatchProfile, ...] = (DEFAULT_PROFILE,)
    static: bool = False
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    strip: bool = False
    refit: bool = False
    hardware_compatibility: str = "none"
    layers: Path | None = None
    verbose: bool = False


@dataclass(frozen=True, kw_only=True)
class BuildSettings(BuildOptions):
    """How a plan is built, by this builder and for this network.

    Attributes:
        title: of the builder, for messages.
        is_rtx: TensorRT-RTX.
        chw: of a sample.
        capabilities: compute capabilities to build for; TensorRT builds for the GPU that is here.
        timing_cache: a file of kernels' times, TensorRT alone; None for none.
        conditions: shapes of one sample's conditions, by name.
    """

    title: str
    is_rtx: bool
    chw: tuple[int, ...]
    capabilities: tuple[str, ...]
    timing_cache: Path | None = None
    conditions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For another process."""
        return asdict(self) | {name: str(path) for name in ("timing_cache", "layers") if (path := getattr(self, name))}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> BuildSettings:
        """The inverse of `to_json`."""
        typed = dict(fields)
        typed["profiles"] = tuple(BatchProfile(**batches) for batches in fields["profiles"])
        for name in ("chw", "capabilities"):
            typed[name] = tuple(fields[name])
        typed["conditions"] = {name: tuple(shape) for name, shape in fields["conditions"].items()}
        for name in ("timing_cache", "layers"):
            typed[name] = Path(fields[name]) if fields[name] else None
        return cls(**typed)


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


def choose_flavor(requested: str, driver: DriverFacts, is_installed: Callable[[str], bool] | None = None) -> Flavor:
    """The builder that was asked for, or for `auto` the one that is installed and fits what is here.

    Where a GPU is present TensorRT comes first, since it measures its kernels on that GPU and runs on every kind of
    it; without one it cannot build at all.

    Args:
        requested: one of `FLAVOR_FLAGS`.
        driver: of this machine.
        is_installed: by a module's name.

    Raises:
        DeviceUnavailableError: not installed, or no GPU for a builder that needs one.
    """
    installed = is_installed or _is_installed
    if requested != "auto":
        flavor = next(flavor for flavor in FLAVORS.values() if flavor.flag == requested)
        if not installed(flavor.module):
            raise DeviceUnavailableError(
                f"--flavor {requested}: {flavor.title} is not installed (no module {flavor.module!r}); {flavor.install}"
            )
        if flavor.needs_gpu and driver.missing:
            raise DeviceUnavailableError(
                f"--flavor {requested}: {flavor.title} builds on a machine with an NVIDIA GPU; none was found: "
                f"{driver.missing}; build there, or here with --flavor {RTX.flag}"
            )
        return flavor
    found = [flavor for flavor in FLAVORS.values() if installed(flavor.module)]
    if not found:
        ways = ", or ".join(flavor.install for flavor in reversed(FLAVORS.values()))
        raise DeviceUnavailableError(f"neither TensorRT-RTX nor TensorRT is installed; {ways}")
    if driver.missing:
        ahead = [flavor for flavor in found if not flavor.needs_gpu]
        if not ahead:
            raise DeviceUnavailableError(
                f"TensorRT builds on a machine with an NVIDIA GPU; none was found: {driver.missing}; build there, or "
                f"install {RTX.title}, which builds without one: {RTX.install}"
            )
        return ahead[0]
    gpu = driver.gpus[0]
    fitting = [flavor for flavor in found if flavor is TENSORRT or gpu.compute_capability in RTX_CAPABILITIES]
    if not fitting:
        raise DeviceUnavailableError(
            f"{RTX.title} does not run on {gpu.name} (compute capability {gpu.compute_capability}), and TensorRT, "
            f"which does, is not installed; {TENSORRT.install}, or give --flavor {RTX.flag} to build for another GPU"
        )
    return fitting[0]


def load_flavor(flavor: Flavor) -> ModuleType:
    """Import its module.

    Raises:
        DeviceUnavailableError: it is installed and cannot be loaded.
    """
    try:
        return importlib.import_module(flavor.module)
    except (ImportError, OSError) as error:
        raise DeviceUnavailableError(f"{flavor.title} cannot be loaded ({reason(error)}); {flavor.install}") from error


def target_capabilities(flavor: Flavor, requested: str | None, driver: DriverFacts, precision: str) -> tuple[str, ...]:
    """Which GPUs a plan is for, as compute capabilities in ascending order.

    Args:
        flavor: the builder.
        requested: a list such as `8.6,8.9`, also without dots; None for the usual ones and the GPU that is here.
        driver: of this machine.
        precision: of the engine.

    Raises:
        InputError: a capability that the builder does not target, or not in this precision.
    """
    here = [gpu.compute_capability for gpu in driver.gpus[:1]]
    if flavor.needs_gpu:
        if requested is not None and [_dotted(part) for part in requested.split(",")] != here:
            raise InputError(
                f"--compute-capabilities is {requested}, but {flavor.title} builds for the GPU that is here "
                f"({', '.join(here)}) alone; leave the flag out, or give --flavor {RTX.flag}"
            )
        return tuple(here)
    if requested is None:
        extra = [one for one in here if one in RTX_CAPABILITIES and (one != "7.5" or precision == "fp16")]
        return _sorted({*DEFAULT_CAPABILITIES, *extra})
    found = {_dotted(part) for part in requested.split(",")}
    unknown = sorted(found - set(RTX_CAPABILITIES))
    if unknown:
        raise InputError(
            f"--compute-capabilities: {flavor.title} does not target {', '.join(unknown)}, expected any of "
            f"{', '.join(RTX_CAPABILITIES)}; for other GPUs give --flavor {TENSORRT.flag}"
        )
    if "7.5" in found and precision != "fp16":
        raise InputError(
            f"--compute-capabilities: on 7.5 {flavor.title} has no {precision} arithmetic, expected fp16 there; "
            "give --fp16, or leave 7.5 out"
        )
    return _sorted(found)


def _dotted(text: str) -> str:
    """`86` and `8.6` are the same."""
    text = text.strip()
    return f"{text[:-1]}.{text[-1]}" if text.isdecimal() and len(text) > 1 else text


def _sorted(found: set[str]) -> tuple[str, ...]:
    return tuple(sorted(found, key=lambda text: tuple(map(int, text.split(".")))))


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def default_timing_cache(version: str, capability: str) -> Path | None:
    """Where the times of one TensorRT version on one kind of GPU are kept; None where no cache folder is."""
    if not can_keep():
        return None
    return user_cache_folder("timing") / f"tensorrt-{version}-sm{capability.replace('.', '')}.cache"
