"""Networks before they are engines: checkpoints and ONNX files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.errors import InputError
from diffusion.process import METADATA_KEY, Process
from export.checkpoints.registry import check_foreign, read_foreign
from export.inspection.counts import NetworkCounts, count_module, count_onnx
from export.inspection.record import Inspection
from export.inspection.runs_here import checkpoint_runs_here, onnx_runs_here
from export.source import onnx_origins
from runtime.engines.checkpoint_folder import read_checkpoint_folder
from runtime.engines.network_contract import process_of_onnx
from runtime.formats.tensor_spec import TensorSpec, condition_specs, sample_and_timestep
from runtime.formats.train_record import TrainRecord
from runtime.process_flags import ProcessFlags

if TYPE_CHECKING:
    import onnx
    import torch

    from runtime.engines.onnx_file import OnnxFile


def inspect_folder(path: Path, flags: ProcessFlags, allow_pickle: bool) -> Inspection:
    found = read_checkpoint_folder(path, flags)
    from runtime.engines.torch_checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path, allow_pickle, flags)
    record = TrainRecord.read(path)
    return Inspection(
        "checkpoint, a diffusers folder",
        path,
        flags.applied_to(checkpoint.process, str(path)),
        found.origins,
        _counts(checkpoint.network, checkpoint.process),
        f"weights in {' and '.join(checkpoint.weight_types)}, run in float32",
        _contract_tensors(checkpoint.process),
        origin={
            "network": "diffusers UNet2DModel",
            "diffusers_version": found.unet_config.get("_diffusers_version"),
            "trained_by": None if record is None else "train.run",
        },
        hashes={"weights": checkpoint.sha256, "network": checkpoint.network_sha256},
        runs_here=tuple(checkpoint_runs_here()),
    )


def inspect_foreign(path: Path, checkpoint_flags: Mapping[str, object], allow_pickle: bool) -> Inspection:
    check_foreign(path, checkpoint_flags, allow_pickle)
    checkpoint = read_foreign(path, checkpoint_flags, allow_pickle)
    process = checkpoint.process
    return Inspection(
        f"checkpoint of {checkpoint.format}",
        path,
        process,
        checkpoint.origins,
        _counts(checkpoint.network, process),
        "run in float32",
        _contract_tensors(process),
        origin={
            "network": checkpoint.format,
            "as_unet2dmodel": checkpoint.unet_config is not None,
            "notes": list(checkpoint.notes),
        },
        hashes={"file": sha256_of(path)},
        runs_here=tuple(checkpoint_runs_here(can_sample=False)),
    )


def _counts(network: torch.nn.Module, process: Process) -> NetworkCounts:
    """Of a network as it was trained: guidance, which an exporter adds, calls it twice."""
    return count_module(network, process.sample.chw, process.without_guidance().conditions)


def _contract_tensors(process: Process) -> dict[str, str]:
    channels, height, width = process.sample.chw
    specs = (
        TensorSpec("x", "float32", ("N", channels, height, width)),
        TensorSpec("t", "float32", ("N",)),
        *condition_specs(process.conditions),
        TensorSpec("prediction", "float32", ("N", process.prediction_channels, height, width)),
    )
    return {each.name: spelled(each) for each in specs}


def inspect_onnx(path: Path, flags: ProcessFlags) -> Inspection:
    import onnx

    from runtime.engines.onnx_file import read_onnx

    file = read_onnx(path)
    try:
        model = onnx.load(str(path), load_external_data=False)
        if not model.graph.node:
            raise InputError("holds no graph, expected a network; export it again")
        tensors = _onnx_tensors(model)
        process, lacks = _process_of(file, model, flags)
        counts = count_onnx(model)
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    return Inspection(
        "ONNX file",
        path,
        process,
        {} if process is None else onnx_origins(flags),
        counts,
        file.precision,
        {entry.name: spelled(entry) for entry in tensors},
        origin={
            "producer": f"{model.producer_name} {model.producer_version}".strip() or None,
            "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
            "unchanged_since_export": file.has_digest,
            "weights": "inside" if file.is_whole else "in other files",
        },
        hashes={"file": file.sha256},
        runs_here=tuple(onnx_runs_here(file.precision)),
        more={} if process is not None else {"process_missing": lacks},
    )


def _process_of(file: OnnxFile, model: onnx.ModelProto, flags: ProcessFlags) -> tuple[Process | None, str]:
    """The process of an ONNX file, and why there is none where neither metadata nor flags describe it."""
    path = file.path
    metadata = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    found = sample_and_timestep(_specs(model, model.graph.input), lambda each: len(each.shape) < 2 or each.is_column)
    if metadata is not None:
        return flags.applied_to(Process.from_json_text(metadata, f"{path}, metadata {METADATA_KEY}"), str(path)), ""
    if found is None:
        return None, "its inputs are no x [N, C, H, W] and t [N]"
    try:
        return process_of_onnx(file, None, found[0], flags), ""
    except InputError as error:
        if flags != ProcessFlags():
            raise
        return None, str(error).removeprefix(f"{path}: ")


def _onnx_tensors(model: onnx.ModelProto) -> list[TensorSpec]:
    return _specs(model, [*model.graph.input, *model.graph.output])


def _specs(model: onnx.ModelProto, entries: Iterable[onnx.ValueInfoProto]) -> list[TensorSpec]:
    from onnx import TensorProto

    weights = {tensor.name for tensor in model.graph.initializer}
    specs = []
    for entry in entries:
        if entry.name in weights:
            continue
        kind = entry.type.tensor_type
        sizes = tuple(dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in kind.shape.dim)
        known = kind.elem_type in TensorProto.DataType.values()
        name = TensorProto.DataType.Name(kind.elem_type).lower() if known else f"type {kind.elem_type}"
        specs.append(TensorSpec(entry.name, {"float": "float32"}.get(name, name), sizes))
    return specs


def spelled(entry: TensorSpec) -> str:
    return f"{entry.element_type} [{', '.join('?' if size is None else str(size) for size in entry.shape)}]"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
