"""Which builder, and for which GPUs: decided from what is installed and what is here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from commands.errors import DeviceUnavailableError
from diffusion.errors import InputError
from export.tensorrt_flavor import choose_flavor, load_flavor, target_capabilities
from runtime.device.driver import DriverFacts, Gpu
from runtime.formats.flavor import RTX, TENSORRT, Flavor

NO_GPU = DriverFacts(None, None, (), "no NVIDIA driver (libcuda.so.1 is not found)")


def machine(capability: str) -> DriverFacts:
    return DriverFacts("580.95", "13.0", (Gpu(0, "NVIDIA H200", capability, 2**37, 132),), "")


def choose(requested: str, driver: DriverFacts, *installed: str) -> Flavor:
    return choose_flavor(requested, driver, lambda module: module in installed)


@pytest.mark.parametrize(
    ("driver", "installed", "expected"),
    [
        (NO_GPU, ["tensorrt_rtx"], RTX),
        (NO_GPU, ["tensorrt_rtx", "tensorrt"], RTX),
        (machine("9.0"), ["tensorrt_rtx", "tensorrt"], TENSORRT),
        (machine("8.9"), ["tensorrt_rtx", "tensorrt"], TENSORRT),
        (machine("8.9"), ["tensorrt_rtx"], RTX),
        (machine("9.0"), ["tensorrt"], TENSORRT),
    ],
)
def test_auto(driver: DriverFacts, installed: list[str], expected: Flavor) -> None:
    assert choose("auto", driver, *installed) is expected


@pytest.mark.parametrize(
    ("requested", "driver", "installed", "says"),
    [
        ("auto", NO_GPU, [], "neither TensorRT-RTX nor TensorRT is installed"),
        ("auto", NO_GPU, ["tensorrt"], "TensorRT builds on a machine with an NVIDIA GPU; none was found: no NVIDIA"),
        ("auto", machine("9.0"), ["tensorrt_rtx"], "does not run on NVIDIA H200 .compute capability 9.0."),
        ("tensorrt", machine("9.0"), ["tensorrt_rtx"], "TensorRT is not installed .no module 'tensorrt'.; pip install"),
        ("tensorrt", NO_GPU, ["tensorrt"], "build there, or here with --flavor rtx"),
        ("rtx", NO_GPU, ["tensorrt"], "TensorRT-RTX is not installed"),
    ],
)
def test_a_builder_that_is_not_here(requested: str, driver: DriverFacts, installed: list[str], says: str) -> None:
    with pytest.raises(DeviceUnavailableError, match=says):
        choose(requested, driver, *installed)


def test_asked_for_is_used() -> None:
    assert choose("rtx", machine("9.0"), "tensorrt_rtx", "tensorrt") is RTX


def test_a_module_that_does_not_load() -> None:
    broken = replace(TENSORRT, module="tensorrt_that_is_not_there")
    with pytest.raises(DeviceUnavailableError, match="TensorRT cannot be loaded .No module named 'tensorrt_that"):
        load_flavor(broken)


@pytest.mark.parametrize(
    ("flavor", "requested", "driver", "precision", "expected"),
    [
        (RTX, None, NO_GPU, "fp32", ("8.0", "8.6", "8.9", "12.0")),
        (RTX, None, machine("12.1"), "bf16", ("8.0", "8.6", "8.9", "12.0", "12.1")),
        (RTX, None, machine("7.5"), "fp16", ("7.5", "8.0", "8.6", "8.9", "12.0")),
        (RTX, None, machine("7.5"), "bf16", ("8.0", "8.6", "8.9", "12.0")),
        (RTX, None, machine("9.0"), "fp16", ("8.0", "8.6", "8.9", "12.0")),
        (RTX, "120,8.6", NO_GPU, "fp32", ("8.6", "12.0")),
        (RTX, "7.5", NO_GPU, "fp16", ("7.5",)),
        (TENSORRT, None, machine("9.0"), "fp16", ("9.0",)),
        (TENSORRT, "90", machine("9.0"), "fp16", ("9.0",)),
    ],
)
def test_capabilities(
    flavor: Flavor, requested: str | None, driver: DriverFacts, precision: str, expected: tuple[str, ...]
) -> None:
    assert target_capabilities(flavor, requested, driver, precision) == expected


@pytest.mark.parametrize(
    ("flavor", "requested", "precision", "says"),
    [
        (RTX, "9.0,8.6", "fp16", "does not target 9.0, expected any of 7.5"),
        (RTX, "", "fp16", "does not target"),
        (RTX, "7.5", "bf16", "on 7.5 TensorRT-RTX has no bf16"),
        (RTX, "7.5", "fp32", "has no fp32"),
        (TENSORRT, "8.6", "fp16", "builds for the GPU that is here .9.0. alone"),
    ],
)
def test_capabilities_that_are_none(flavor: Flavor, requested: str, precision: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        target_capabilities(flavor, requested, machine("9.0"), precision)
