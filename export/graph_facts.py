"""What is certain about a graph: shapes that follow from its inputs, constants, readers, and free names.

A rewrite may rest on these and on nothing else: a file's own notes of shapes may be stale, a subgraph reads from
outside, an operator of another domain may bear a standard name, and a name that looks new may be taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BATCH = "batch of the inputs"
"""The size of a first axis that is as long as the inputs' batch, whatever that is."""

Shape = tuple[int | str, ...]
"""Sizes by axis; a size that is open is a name, `BATCH` or `OPEN`."""

OPEN = "open"

SHAPE_OPS = ("Shape", "Size")
"""They read how large a tensor is, not what is in it."""

MAX_ONNX_BYTES = 2**31 - 2**24
"""Of the weights of an ONNX graph: Protocol Buffers' limit on a message, less room for the graph itself."""

_STANDARD_DOMAINS = ("", "ai.onnx")
# Shapes are computed from fewer numbers.
_MAX_NUMBERS = 64


class GraphFacts:
    """The facts of one state of a graph; they do not follow it when it changes.

    Attributes:
        constants: weights that nothing can feed or change, by name.
        shapes: of every tensor whose rank is certain, by name.
        maker: the node that computes a tensor, by name.
        readers: nodes that read a tensor, themselves or in their subgraphs, by name.
        outputs: the graph's.
        opset: the version of the standard operators; 0 where there is none.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        fed = {entry.name for entry in graph.input}
        self.constants = {entry.name: entry for entry in graph.initializer if entry.name not in fed}
        self.shapes = symbolic_shapes(model)
        self.maker = {name: node for node in graph.node for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in dict.fromkeys(reads(node)):
                self.readers.setdefault(name, []).append(node)
        self.outputs = {entry.name for entry in graph.output}
        self.opset = opset_of(model)
        self._taken = all_names(graph)

    def numbers(self, name: str) -> np.ndarray | None:
        """The values of a constant; None for any other tensor."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def has_certain_size(self, name: str) -> bool:
        """Whether a tensor's size follows from the batch alone, so that reading it says nothing of any values."""
        return name in self.shapes and OPEN not in self.shapes[name] and 0 not in self.shapes[name]

    def only_reader(self, name: str, op_type: str) -> onnx.NodeProto | None:
        """The standard node of that kind that alone reads a tensor, if there is one."""
        found = self.readers.get(name, [])
        alone = len(found) == 1 and name not in self.outputs and is_standard(found[0], op_type)
        return found[0] if alone else None

    def free_name(self, stem: str) -> str:
        """A name that no tensor of the graph or of its subgraphs has; it is taken from now on."""
        return free_name(stem, self._taken)


def is_standard(node: onnx.NodeProto, *op_types: str) -> bool:
    """Whether a node is one of these operators of the ONNX standard; other domains have operators of equal names."""
    return node.op_type in op_types and node.domain in _STANDARD_DOMAINS


def attribute(node: onnx.NodeProto, name: str, default: object) -> object:
    """The value of an attribute; text as str, several numbers as a list."""
    for entry in node.attribute:
        if entry.name == name:
            value = helper.get_attribute_value(entry)
            if isinstance(value, bytes):
                return value.decode(errors="replace")
            return list(value) if isinstance(default, list) else value
    return default


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators; 0 where there is none."""
    return next((entry.version for entry in model.opset_import if entry.domain in _STANDARD_DOMAINS), 0)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of a node of control flow."""
    for entry in node.attribute:
        if entry.type == onnx.AttributeProto.GRAPH:
            yield entry.g
        elif entry.type == onnx.AttributeProto.GRAPHS:
            yield from entry.graphs


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Every tensor that a node reads, those that its subgraphs take from outside among them."""
    yield from (name for name in node.input if name)
    for subgraph in subgraphs(node):
        for inner in subgraph.node:
            yield from reads(inner)
        yield from (entry.name for entry in subgraph.output)


def free_name(stem: str, taken: set[str]) -> str:
    """A name that is not taken yet; it is from now on."""
    name, number = stem, 0
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(name)
    return name


def all_names(graph: onnx.GraphProto) -> set[str]:
    """Every name that a tensor has in a graph or in the subgraphs of its nodes."""
    names = {entry.name for entry in (*graph.input, *graph.output, *graph.initializer)}
    names |= {entry.values.name for entry in graph.sparse_initializer}
    for node in graph.node:
        names.update(node.input, node.output)
        for subgraph in subgraphs(node):
            names |= all_names(subgraph)
    return names


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own, in place; those that have one keep it. ONNX Runtime takes no name twice."""
    taken: set[str] = set()
    for place, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = free_name(f"{node.op_type}_{place}", taken)
        taken.add(node.name)


def rename_reads(node: onnx.NodeProto, new_names: Mapping[str, str]) -> None:
    """Let a node and its subgraphs read other tensors.

    The new names must be no names of tensors that a subgraph makes, as `free_name` finds them.
    """
    for place, name in enumerate(node.input):
        node.input[place] = new_names.get(name, name)
    for subgraph in subgraphs(node):
        for inner in subgraph.node:
            rename_reads(inner, new_names)
        for entry in subgraph.output:
            entry.name = new_names.get(entry.name, entry.name)


def rename_everywhere(graph: onnx.GraphProto, new_names: Mapping[str, str]) -> None:
    """Rename tensors in a graph and its subgraphs, in place. New names that are taken must be renamed themselves."""
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = new_names.get(name, name)
        for subgraph in subgraphs(node):
            rename_everywhere(subgraph, new_names)
    for entry in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        entry.name = new_names.get(entry.name, entry.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = new_names.get(sparse.values.name, sparse.values.name)


def drop_unread(graph: onnx.GraphProto, candidates: set[str] | None = None) -> None:
    """Remove weights that nothing reads, in place; all, or those among the candidates."""
    read = {name for node in graph.node for name in reads(node)} | {entry.name for entry in graph.output}
    for entry in list(graph.initializer):
        if entry.name not in read and (candidates is None or entry.name in candidates):
            graph.initializer.remove(entry)


def symbolic_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Every shape that follows from the inputs', by name. The open first axis of all inputs is `BATCH`."""
    shapes = {}
    for entry in infer(model):
        kind = entry.type.tensor_type
        if kind.HasField("shape"):  # without the question, an unknown shape looks like a single number's
            shapes[entry.name] = tuple(_size(dim) for dim in kind.shape.dim)
    return shapes


def infer(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Types and shapes of inputs, weights, and all that is computed, from the inputs' alone.

    Raises:
        onnx.shape_inference.InferenceError: a graph that contradicts itself.
    """
    # Inference copies a model twice: large weights stay behind, as nothing follows from their values.
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    weights = {entry.name for entry in model.graph.initializer}
    for entry in model.graph.input:
        if entry.name not in weights:
            light.graph.input.append(_open_input(entry))
    for entry in model.graph.output:  # the shapes that the file gives need not be true
        kind = entry.type.tensor_type.elem_type
        light.graph.output.append(helper.make_tensor_value_info(entry.name, kind, None) if kind else entry)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _MAX_NUMBERS and tensor.data_location != TensorProto.EXTERNAL:
            light.graph.initializer.append(tensor)
        light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    while True:
        graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
        entries = [*graph.input, *graph.value_info, *graph.output]
        kinds = {entry.name: entry.type.tensor_type for entry in entries}
        if not _keep_in_reshapes(light.graph, kinds) and not _keep_in_resizes(light.graph, kinds):
            return entries


def _open_input(entry: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """An input whose open sizes say nothing but that the first one is the batch: names in a file may repeat."""
    opened = onnx.ValueInfoProto()
    opened.CopyFrom(entry)
    for axis, dim in enumerate(opened.type.tensor_type.shape.dim):
        if not dim.dim_value:
            dim.Clear()
            if axis == 0:
                dim.dim_param = BATCH
    return opened


def _keep_in_resizes(graph: onnx.GraphProto, kinds: dict[str, onnx.TypeProto.Tensor]) -> bool:
    """Note that a Resize by 1 along the first axis keeps the batch: ONNX's inference multiplies numbers alone."""
    constants = {entry.name: entry for entry in graph.initializer}
    noted = {entry.name for entry in (*graph.value_info, *graph.output)}
    changed = False
    for node in graph.node:
        if not is_standard(node, "Resize") or len(node.input) < 3 or node.input[2] not in constants:
            continue
        scales = numpy_helper.to_array(constants[node.input[2]]).reshape(-1).tolist()
        before, after = (kinds.get(name) for name in (node.input[0], node.output[0]))
        if before is None or after is None or not before.shape.dim or node.output[0] in noted:
            continue
        of_all = len(scales) == len(before.shape.dim) == len(after.shape.dim) and not attribute(node, "axes", [])
        if attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
            continue  # which resizes a part
        if of_all and scales[0] == 1 and _size(before.shape.dim[0]) == BATCH != _size(after.shape.dim[0]):
            note = onnx.ValueInfoProto(name=node.output[0])
            note.type.tensor_type.CopyFrom(after)
            note.type.tensor_type.shape.dim[0].Clear()
            note.type.tensor_type.shape.dim[0].dim_param = BATCH
            graph.value_info.append(note)
            changed = True
    return changed


def _keep_in_reshapes(graph: onnx.GraphProto, kinds: dict[str, onnx.TypeProto.Tensor]) -> bool:
    """Say "as the input's" (0) for "what is left" (−1) where that is certain; ONNX's inference does not find it."""
    constants = {entry.name: entry for entry in graph.initializer}
    changed = False
    for node in graph.node:
        if not is_standard(node, "Reshape") or len(node.input) < 2 or node.input[1] not in constants:
            continue
        kind = kinds.get(node.input[0])
        if kind is None or not kind.HasField("shape") or not kind.shape.dim:
            continue
        first, *rest = (_size(dim) for dim in kind.shape.dim)
        target = numpy_helper.to_array(constants[node.input[1]]).reshape(-1).tolist()
        sizes = [size for size in rest if isinstance(size, int) and size > 0]
        if first != BATCH or len(sizes) != len(rest) or not target or target[0] != -1 or min(target[1:], default=1) < 1:
            continue
        if math.prod(target[1:]) != math.prod(sizes):
            continue
        name = f"{node.input[1]}\0{len(graph.initializer)}"  # no name in a file has a zero byte
        graph.initializer.append(numpy_helper.from_array(np.array([0, *target[1:]], dtype=np.int64), name))
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, [len(target)]))
        node.input[1] = name
        for entry in list(node.attribute):
            if entry.name == "allowzero":
                node.attribute.remove(entry)
        changed = True
    return changed


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return BATCH if dim.dim_param == BATCH else OPEN
