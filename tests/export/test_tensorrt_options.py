"""Options of a plan: which builder and which GPUs, from what is installed and what is here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from commands.errors import DeviceUnavailableError
from diffusion.errors import InputError
from export.tensorrt_options import (
    TensorRtOptions,
    choose_flavor,
    default_timing_cache,
    load_flavor,
    target_capabilities,
)
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


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"flavor": "cuda"}, "flavor is 'cuda', expected one of auto, tensorrt, rtx"),
        ({"group_norm": "layer"}, "group_norm is 'layer', expected one of instance, group"),
        ({"optimization_level": 6}, "optimization_level is 6, expected one of None, 0, 1, 2, 3, 4, 5"),
        ({"hardware_compatibility": "all"}, "hardware_compatibility is 'all', expected one of none, ampere_plus"),
        ({"profiles": ()}, "profiles is empty, expected at least one"),
        ({"static": True}, "static with several batch sizes, expected one profile whose min, opt and max are equal"),
    ],
)
def test_options_that_no_builder_has(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        TensorRtOptions(**fields)


def test_one_for_each_version_and_kind_of_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert str(default_timing_cache("10.16.1", "9.0")) == "/cache/ddpm-rt/timing/tensorrt-10.16.1-sm90.cache"
