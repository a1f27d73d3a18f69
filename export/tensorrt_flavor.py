"""TensorRT and TensorRT-RTX: what either can do, which is installed, and which one to build with."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType

from commands.errors import DeviceUnavailableError
from commands.reasons import reason
from diffusion.errors import InputError
from runtime.device.driver import DriverFacts
from runtime.formats.flavor import FLAVORS, RTX, TENSORRT, Flavor

FLAVOR_FLAGS = ("auto", *(flavor.flag for flavor in FLAVORS.values()))

# What TensorRT-RTX runs on, from its documentation ("CPU-Only AOT and TensorRT-RTX Engines"); 7.5 with fp16 alone.
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
DEFAULT_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")


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
