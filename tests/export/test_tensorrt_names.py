"""Every name of TensorRT's that the exporter touches is there: in the module that installs, in releases 10 and 11."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorrt_rtx

from export import tensorrt_build
from export.tensorrt_options import RTX_CAPABILITIES
from runtime.formats.plan_description import HARDWARE_COMPATIBILITIES

ROOT = Path(tensorrt_build.__file__).parent
FILES = ("tensorrt_build.py",)
RECORDED = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text())["releases"]
# What the code's variables hold, and what the calls return that it goes on with.
OWNERS = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "_config": "IBuilderConfig",
    "parser": "OnnxParser",
    "error": "ParserError",
    "profile": "IOptimizationProfile",
    "engine": "ICudaEngine",
    "create_engine_inspector": "EngineInspector",
    "get_timing_cache": "ITimingCache",
    "Runtime": "Runtime",
}
# Not the module's own, and asked for only of the flavor that has them.
RTX_ALONE = {
    "BuilderFlag.REQUIRE_USER_ALLOCATION",
    "ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}


def touched() -> set[str]:
    """`Owner.name` of everything that the sources read from the module or from its objects."""
    found = {f"{flag}" for flag in ("NetworkDefinitionCreationFlag.STRONGLY_TYPED",)}
    found |= {f"BuilderFlag.{flag}" for flag in tensorrt_build._FLAG_OF.values()}
    for name in FILES:
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(node, ast.Attribute):
                found |= set(of_attribute(node))
            elif isinstance(node, ast.ClassDef):
                for base in node.bases:
                    if isinstance(base, ast.Attribute):  # what is overridden must be called so
                        methods = [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
                        found |= {
                            f"{base.attr}.{method}" for method in methods if method not in ("__init__", "bar", "last")
                        }
    return found - {"OSError.strerror", "ParserError.strerror"}


def of_attribute(node: ast.Attribute) -> Iterator[str]:
    value = node.value
    if isinstance(value, ast.Call):
        value = value.func
    if isinstance(value, ast.Name):
        if value.id == "trt" and node.attr not in ("__version__",):
            yield node.attr
        elif value.id in OWNERS:
            yield f"{OWNERS[value.id]}.{node.attr}"
    elif isinstance(value, ast.Attribute):
        if isinstance(value.value, ast.Name) and value.value.id == "trt":
            yield f"{value.attr}.{node.attr}"
        elif value.attr in OWNERS:
            yield f"{OWNERS[value.attr]}.{node.attr}"


NAMES = sorted(touched() - {name for name in touched() if name.endswith((".__init__", ".__members__"))})


def test_the_sources_are_read() -> None:
    for name in (
        "Builder",
        "Builder.build_serialized_network",
        "BuilderFlag.TF32",
        "IBuilderConfig.add_optimization_profile",
        "ITimingCache.serialize",
        "OnnxParser.get_error",
        "ParserError.node_operator",
        "IProgressMonitor.step_complete",
        "Runtime.deserialize_cuda_engine",
        "EngineInspector.get_engine_information",
    ):
        assert name in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_tensorrt_rtx_has_it(name: str) -> None:
    found: object = tensorrt_rtx
    for part in name.split("."):
        assert hasattr(found, part), name
        found = getattr(found, part)


@pytest.mark.parametrize("release", sorted(RECORDED))
def test_tensorrt_has_it(release: str) -> None:
    recorded = {owner: set(names.split()) for owner, names in RECORDED[release].items()}
    for name in NAMES:
        if name in RTX_ALONE:
            continue
        owner, _, member = name.partition(".")
        assert owner in recorded, name
        assert not member or member in recorded[owner], name


def test_capabilities_and_levels_by_name() -> None:
    members = tensorrt_rtx.ComputeCapability.__members__
    assert {"SM" + capability.replace(".", "") for capability in RTX_CAPABILITIES} == set(members) - {"NONE", "CURRENT"}
    levels = {level.upper() for level in HARDWARE_COMPATIBILITIES}
    assert levels == set(tensorrt_rtx.HardwareCompatibilityLevel.__members__)
    assert levels <= set(RECORDED["v11.1"]["HardwareCompatibilityLevel"].split())
    # Asked for by name, and refused in one line where it is missing.
    assert "SAME_COMPUTE_CAPABILITY" not in RECORDED["v10.0.0"]["HardwareCompatibilityLevel"].split()
