"""A foreign ONNX file as a graph that the exporters can rewrite: complete, in one piece, every name unique.

What it computes stays what it was. Local functions are written out, constants are weights, weights are no inputs, and
what subgraphs call their tensors is the name of nothing else. What cannot be had so is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from commands.errors import reason
from diffusion.errors import InputError
from export.graph_facts import MAX_ONNX_BYTES, all_names, free_name, infer, is_standard, subgraphs

_MIN_IR = 4  # since when weights need not be inputs


def read_network(path: Path) -> onnx.ModelProto:
    """Read a file and its external data, and prepare it.

    External data must be in the folder of the file as it was named, or in the folder where that file really is: in
    Hugging Face's cache a file and its data are symbolic links to one folder of blobs.

    Raises:
        InputError: no such graph, external data that is missing or elsewhere, or more than one ONNX message holds.
    """
    try:
        size = path.stat().st_size
        model = onnx.load(str(path), load_external_data=False) if size <= MAX_ONNX_BYTES else None
    except Exception as error:  # of the operating system or Protocol Buffers
        raise InputError(
            f"{path}: cannot be read as an ONNX model ({reason(error)}); copy or export it again"
        ) from error
    outside = [] if model is None else [tensor for tensor in _tensors(model) if _is_external(tensor)]
    size += sum(_num_bytes(tensor) for tensor in outside)
    if model is None or size > MAX_ONNX_BYTES:
        raise InputError(
            f"{path}: {size / 1e9:.1f} GB of network and weights, expected at most {MAX_ONNX_BYTES / 1e9:.1f} GB, "
            "as much as one ONNX message holds; run the file itself with `python -m runtime.sample "
            "--backend onnxruntime`, or export a smaller network"
        )
    for tensor in outside:
        _load(tensor, path)
    return prepare(model, str(path))


def prepare(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """The same network in the form that rewrites expect.

    Args:
        model: whole; unchanged.
        source: what to call it in an error.

    Raises:
        InputError: ONNX's own checks refuse it.
    """
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    del prepared.training_info[:]
    try:
        if prepared.functions:
            prepared = onnx.inliner.inline_local_functions(prepared)
    except Exception as error:  # the inliner's exceptions have no common base
        names = ", ".join(sorted({function.name for function in model.functions}))
        raise InputError(
            f"{source}: its local functions {names} cannot be written out ({reason(error)}); "
            "export it without functions"
        ) from error
    graph = prepared.graph
    prepared.ir_version = max(prepared.ir_version, _MIN_IR)
    weights = {entry.name for entry in graph.initializer} | {entry.values.name for entry in graph.sparse_initializer}
    for entry in list(graph.input):
        if entry.name in weights:  # a default that is never overridden
            graph.input.remove(entry)
    _constants_to_weights(graph)
    _make_outputs(graph)
    _rename_inside(graph)
    del graph.value_info[:]  # notes of its writer, which need not be true
    try:
        onnx.checker.check_model(prepared)
        infer(prepared)
    except Exception as error:  # ONNX's exceptions have no common base
        raise InputError(
            f"{source}: ONNX's own checks refuse it ({reason(error)}); export it again with standard "
            "operators of opset 18"
        ) from error
    return prepared


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    yield from _tensors_of(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _tensors_of_node(node)


def _tensors_of(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for entry in graph.sparse_initializer:
        yield from (entry.values, entry.indices)
    for node in graph.node:
        yield from _tensors_of_node(node)


def _tensors_of_node(node: onnx.NodeProto) -> Iterator[TensorProto]:
    for entry in node.attribute:
        if entry.type == onnx.AttributeProto.TENSOR:
            yield entry.t
        yield from entry.tensors
    for subgraph in subgraphs(node):
        yield from _tensors_of(subgraph)


def _is_external(tensor: TensorProto) -> bool:
    return tensor.HasField("data_location") and tensor.data_location == TensorProto.EXTERNAL


def _num_bytes(tensor: TensorProto) -> int:
    """Of a tensor as raw data: elements of less than a byte are packed."""
    numbers = int(np.prod(tensor.dims, dtype=object))
    packed = {TensorProto.INT4: 2, TensorProto.UINT4: 2, TensorProto.FLOAT4E2M1: 2}.get(tensor.data_type)
    if packed is not None:
        return -(-numbers // packed)
    return numbers * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _load(tensor: TensorProto, path: Path) -> None:
    """Read a tensor's external data into it. Raises InputError."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    file = _external_file(path, said.get("location", ""), tensor.name)
    expected = _num_bytes(tensor)
    try:
        offset, length = int(said.get("offset", "0")), int(said.get("length", str(expected)))
        if offset < 0 or length != expected:
            raise ValueError(f"{length} bytes from {offset}, expected {expected}")
        with file.open("rb") as opened:
            opened.seek(offset)
            content = opened.read(length)
        if len(content) != expected:
            raise ValueError(f"it ends after {len(content)} of {expected} bytes from {offset}")
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path}: its external data {said.get('location')} does not hold {tensor.name} ({reason(error)}); copy the "
            "file and its data again"
        ) from error
    tensor.raw_data = content
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _external_file(path: Path, location: str, name: str) -> Path:
    """Where external data is. Raises InputError for a place outside of the model's folder."""
    parts = Path(location)
    if not location or parts.is_absolute() or ".." in parts.parts or "\0" in location:
        raise InputError(
            f"{path}: the external data of {name} is at {location!r}, expected a file in the folder of the model; "
            "save the model and its data in one folder"
        )
    try:
        file = (path.parent / parts).resolve(strict=True)
        folders = path.parent.resolve(strict=True), path.resolve(strict=True).parent
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{path}: its external data {location} cannot be read ({reason(error)}); copy it into the model's folder"
        ) from error
    if not any(file.is_relative_to(folder) for folder in folders):
        raise InputError(
            f"{path}: its external data {location} is a link to {file}, expected a file in the folder of the model or, "
            f"as in Hugging Face's cache, in {folders[1]}; copy it there"
        )
    if not file.is_file():
        raise InputError(f"{path}: its external data {location} is no file; copy it into the model's folder")
    return file


def _constants_to_weights(graph: onnx.GraphProto) -> None:
    """Constant nodes as initializers, which is where rewrites look for constants."""
    outputs = {entry.name for entry in graph.output}
    for node in list(graph.node):
        if is_standard(node, "Constant") and len(node.attribute) == 1 and node.output[0] not in outputs:
            tensor = _constant_value(node.attribute[0])
            if tensor is not None:
                tensor.name = node.output[0]
                graph.initializer.append(tensor)
                graph.node.remove(node)


def _constant_value(attribute: onnx.AttributeProto) -> TensorProto | None:
    if attribute.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(attribute.t)
        return tensor
    types = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if attribute.name not in types:
        return None
    return numpy_helper.from_array(np.array(helper.get_attribute_value(attribute), dtype=types[attribute.name]))


def _make_outputs(graph: onnx.GraphProto) -> None:
    """Let a node make every output: an output that is an input or a weight itself cannot be renamed or retyped."""
    made, taken = {name for node in graph.node for name in node.output}, all_names(graph)
    for entry in graph.output:
        if entry.name not in made:
            name = free_name(entry.name, taken)
            graph.node.append(helper.make_node("Identity", [entry.name], [name]))
            entry.name = name


def _rename_inside(graph: onnx.GraphProto) -> None:
    """Give every tensor that a subgraph makes a name of its own: elsewhere it may mean something else."""
    taken = {entry.name for entry in (*graph.input, *graph.output, *graph.initializer)}
    taken |= {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {entry.values.name for entry in graph.sparse_initializer}
    for node in graph.node:
        for subgraph in subgraphs(node):
            _rename_graph(subgraph, {}, taken)


def _rename_graph(graph: onnx.GraphProto, outer: dict[str, str], taken: set[str]) -> None:
    names = dict(outer)

    def named(name: str) -> str:
        names[name] = free_name(name, taken)
        return names[name]

    weights = {entry.name: named(entry.name) for entry in graph.initializer}
    weights |= {entry.values.name: named(entry.values.name) for entry in graph.sparse_initializer}
    for entry in graph.input:
        entry.name = weights.get(entry.name) or named(entry.name)
    for tensor in graph.initializer:
        tensor.name = weights[tensor.name]
    for sparse in graph.sparse_initializer:
        sparse.values.name = weights[sparse.values.name]
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
        for subgraph in subgraphs(node):
            _rename_graph(subgraph, names, taken)
        for place, name in enumerate(node.output):
            node.output[place] = named(name) if name else name
    for entry in graph.output:
        entry.name = names.get(entry.name, entry.name)
    del graph.value_info[:]
