"""What fp16 or bf16 does to a network, computed on a CPU: float32 arithmetic, every tensor rounded as it is stored.

ONNX Runtime's CPU provider has no bf16 convolutions, and runs fp16 graphs in float32 without rounding what passes from
one node to the next. Here every tensor that the graph holds in low precision is rounded (Cast → low → float32), weights
included. A GPU accumulates in float32 too and rounds at most where this rounds: it keeps what it fuses in registers.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph_facts import all_names, free_name, is_standard, name_nodes, rename_reads
from export.network_io import tensor_types

LOW_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

# They move numbers and make none, so what goes in rounded comes out so.
_MOVES = frozenset(
    (
        "Reshape",
        "Transpose",
        "Gather",
        "Concat",
        "Split",
        "Slice",
        "Squeeze",
        "Unsqueeze",
        "Identity",
        "Expand",
        "Flatten",
    )
)


def emulate_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with float32 inputs and outputs, in float32 arithmetic that rounds as often as types say.

    Args:
        model: with fp16 or bf16 tensors, none of them in a subgraph; unchanged.
    """
    types, taken = tensor_types(model), all_names(model.graph)
    emulated = onnx.ModelProto()
    emulated.CopyFrom(model)
    graph = emulated.graph
    del graph.value_info[:]
    for place, weights in enumerate(graph.initializer):
        if weights.data_type in LOW_TYPES:
            values = numpy_helper.to_array(weights).astype(np.float32)
            graph.initializer[place].CopyFrom(numpy_helper.from_array(values, weights.name))
    nodes: list[onnx.NodeProto] = []
    inputs = {entry.name: entry for entry in graph.input if entry.type.tensor_type.elem_type in LOW_TYPES}
    rounded_inputs = {}
    for name, entry in inputs.items():
        rounded_inputs[name] = free_name(f"{name}_rounded", taken)
        nodes += _round(name, rounded_inputs[name], entry.type.tensor_type.elem_type, taken)
        entry.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        rename_reads(node, rounded_inputs)
        low = {place: name for place, name in enumerate(node.output) if types.get(name) in LOW_TYPES}
        _compute_in_float32(node)
        nodes.append(node)
        if is_standard(node, *_MOVES):
            continue
        for place, name in low.items():
            node.output[place] = free_name(f"{name}_exact", taken)
            nodes += _round(node.output[place], name, types[name], taken)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    for entry in graph.output:
        if entry.type.tensor_type.elem_type in LOW_TYPES:
            entry.type.tensor_type.elem_type = TensorProto.FLOAT
    name_nodes(emulated)
    onnx.checker.check_model(emulated)
    return emulated


def _compute_in_float32(node: onnx.NodeProto) -> None:
    """Let what says a type itself say float32: the rounding behind it does the rest."""
    for entry in node.attribute:
        if is_standard(node, "Cast") and entry.name == "to" and entry.i in LOW_TYPES:
            entry.i = TensorProto.FLOAT
        elif entry.type == onnx.AttributeProto.TENSOR and entry.t.data_type in LOW_TYPES:
            entry.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry.t).astype(np.float32), entry.t.name))


def _round(source: str, target: str, element_type: int, taken: set[str]) -> list[onnx.NodeProto]:
    between = free_name(f"{target}_low", taken)
    return [
        helper.make_node("Cast", [source], [between], name=f"{target}/Round", to=element_type),
        helper.make_node("Cast", [between], [target], name=f"{target}/Widen", to=TensorProto.FLOAT),
    ]
