"""Engines, by their sidecars: nothing is deserialized."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.inspection.counts import NetworkCounts, count_openvino
from export.inspection.networks import spelled
from export.inspection.record import Inspection
from export.inspection.runs_here import RunsOn, openvino_runs_here, plan_runs_here
from export.source import FACTS
from runtime.formats.openvino_description import OpenVinoDescription
from runtime.formats.plan_description import PlanDescription
from runtime.formats.sidecar import Sidecar, read_hashed, read_sidecar, sidecar_path, weights_path
from runtime.formats.tensor_spec import NetworkTensors


def inspect_openvino(path: Path) -> Inspection:
    sidecar = read_sidecar(path, OpenVinoDescription)
    engine = sidecar.engine
    hashes = _engine_hashes(path, sidecar)
    hashes["weights"] = engine.weights_sha256
    counts = None
    if path.exists():
        read_hashed(path, weights_path(path), engine.weights_sha256, engine.rebuild)
        counts = count_openvino(path)
    tensors = {}
    if engine.tensors is not None:
        tensors = _tensors(engine.tensors)
    origin = {"builder": engine.builder, "onnx_sha256": engine.onnx_sha256, "time_path": dict(engine.time_path)}
    runs_here = tuple(openvino_runs_here(engine.precision))
    return _engine("OpenVINO engine", path, sidecar, counts, engine.precision, tensors, origin, hashes, runs_here)


def inspect_plan(path: Path) -> Inspection:
    sidecar = read_sidecar(path, PlanDescription)
    engine = sidecar.engine
    origin = {
        "builder": f"{engine.flavor.title} {engine.builder_version}",
        "compute_capabilities": list(engine.compute_capabilities),
        "batches": [str(profile) for profile in engine.profiles],
        "built_on": engine.built_on_gpu,
        "onnx_sha256": engine.onnx_sha256,
        "time_path": dict(engine.time_path),
        "kept_in_float32": len(engine.kept_in_float32),
    }
    tensors = _tensors(engine.tensors)
    hashes, runs_here = _engine_hashes(path, sidecar), tuple(plan_runs_here(engine))
    return _engine("TensorRT plan", path, sidecar, None, engine.precision, tensors, origin, hashes, runs_here)


def _tensors(tensors: NetworkTensors) -> dict[str, str]:
    every = (tensors.x, tensors.t, *tensors.conditions, tensors.prediction)
    return {each.name: spelled(each) for each in every}


def _engine_hashes(path: Path, sidecar: Sidecar[Any]) -> dict[str, str]:
    """The hashes that a sidecar tells; of a file that is here they are compared with its own."""
    if path.exists():
        read_hashed(path, path, sidecar.sha256, sidecar.engine.rebuild)
    return {"file": sidecar.sha256, "golden": sidecar.golden_sha256}


def _engine(
    kind: str,
    path: Path,
    sidecar: Sidecar[Any],
    counts: NetworkCounts | None,
    precision: str,
    tensors: Mapping[str, str],
    origin: Mapping[str, Any],
    hashes: Mapping[str, str],
    runs_here: tuple[RunsOn, ...],
) -> Inspection:
    origins = dict.fromkeys(FACTS, sidecar_path(path).name)
    return Inspection(
        kind,
        path,
        sidecar.process,
        origins,
        counts,
        precision,
        tensors,
        sidecar.verification.to_json(),
        origin,
        hashes,
        runs_here,
        {"engine_file": path.exists()},
    )
