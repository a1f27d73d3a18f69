"""The `config.pbtxt` of models in a repository of Triton Inference Server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusion.errors import InputError
from diffusion.process import SampleShape
from export.network_io import condition_names, tell_inputs_apart
from runtime.formats.plan_description import PlanDescription
from runtime.formats.sidecar import read_sidecar
from runtime.formats.tensor_spec import NetworkTensors, TensorSpec

MAX_BATCH = 64
"""Of the bare network, where the file leaves it open: Triton batches what comes at the same time."""

# As sidecars have it → as Triton has it.
_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float64": "TYPE_FP64",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}


def slots_config(name: str, sample: SampleShape, parameters: Mapping[str, str], on_gpu: bool) -> str:
    """Of the model that draws images: `runtime.serve.triton_model`.

    Args:
        name: of the model.
        sample: the shape of an image.
        parameters: that the model reads.
        on_gpu: whether the engine runs on one.
    """
    image = [-1, sample.height, sample.width, sample.channels]
    outputs = {
        "IMAGES": ("TYPE_UINT8", image),
        "STEPS_DONE": ("TYPE_INT64", [1]),
        "STEPS": ("TYPE_INT64", [1]),
        "PREVIEWS": ("TYPE_UINT8", image),
        "PREVIEW_PLACES": ("TYPE_INT64", [-1]),
    }
    lines = [
        f"name: {_text(name)}",
        'backend: "python"',
        "max_batch_size: 0  # the slots are the batch",
        "model_transaction_policy { decoupled: true }",
        # One engine and one batch, whoever asks; the engine chooses its GPU itself.
        f"instance_group [ {{ kind: {'KIND_MODEL' if on_gpu else 'KIND_CPU'} count: 1 }} ]",
        *_ends("input", [_end("REQUEST", "TYPE_STRING", [1])]),
        *_ends("output", [_end(key, kind, dims) for key, (kind, dims) in outputs.items()]),
    ]
    lines += [
        f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}"
        for key, value in parameters.items()
    ]
    return "\n".join(lines) + "\n"


def network_config(name: str, backend: str, file: str, tensors: NetworkTensors, batches: tuple[int, int | None]) -> str:
    """Of the bare network: x, t and conditions in, the prediction out.

    Args:
        name: of the model.
        backend: of Triton.
        file: of the network, in the folder of a version.
        tensors: of the network.
        batches: the smallest and the largest that it takes; None for any.

    Raises:
        InputError: a tensor of a type that Triton has no name for.
    """
    smallest, largest = batches
    inputs = (tensors.x, tensors.t, *tensors.conditions)
    # Triton adds the first axis of every tensor, if all of them have one and any size of it will do.
    batched = smallest == 1 and largest != 1 and not tensors.t.is_shared_by(tensors.x)
    ends = [[_tensor(each, batched) for each in group] for group in (inputs, (tensors.prediction,))]
    return "\n".join(
        [
            f"name: {_text(name)}",
            f"backend: {_text(backend)}",
            f"default_model_filename: {_text(file)}",
            f"max_batch_size: {min(MAX_BATCH, largest or MAX_BATCH) if batched else 0}",
            *_ends("input", ends[0]),
            *_ends("output", ends[1]),
            *(["dynamic_batching { }"] if batched else []),
            "",
        ]
    )


def tensors_of(engine: Path) -> NetworkTensors:
    """The tensors of an ONNX file or a plan.

    Raises:
        InputError: a file that cannot be read, or of other inputs than an engine has.
    """
    if engine.suffix == ".plan":
        return read_sidecar(engine, PlanDescription).engine.tensors
    import onnx

    model = onnx.load(str(engine), load_external_data=False)
    names = condition_names(model)
    x, t = tell_inputs_apart(model.graph, str(engine), names)
    by_name = {entry.name: entry for entry in model.graph.input}
    return NetworkTensors(
        _spec(x), _spec(t), _spec(model.graph.output[0]), tuple(_spec(by_name[name]) for name in names)
    )


def _spec(entry: object) -> TensorSpec:
    import onnx

    kind = entry.type.tensor_type  # type: ignore[attr-defined]
    element = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return TensorSpec(entry.name, element, shape)  # type: ignore[attr-defined]


def _tensor(spec: TensorSpec, batched: bool) -> str:
    if spec.element_type not in _TYPES:
        raise InputError(f"{spec.name} is {spec.element_type}, expected one of {', '.join(_TYPES)}")
    dims = [size if isinstance(size, int) else -1 for size in spec.shape[1 if batched else 0 :]]
    return _end(spec.name, _TYPES[spec.element_type], dims)


def _end(name: str, kind: str, dims: Sequence[int]) -> str:
    # Triton has no tensors without axes; it takes them from the network by another name.
    shape = f"dims: [ {', '.join(map(str, dims))} ]" if dims else "dims: [ 1 ] reshape { shape: [ ] }"
    return f"{{ name: {_text(name)} data_type: {kind} {shape} }}"


def _ends(group: str, ends: Sequence[str]) -> list[str]:
    return [f"{group} [", *(f"  {end}{',' if end is not ends[-1] else ''}" for end in ends), "]"]


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
