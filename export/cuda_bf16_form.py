"""A network in the words for which ONNX Runtime's CUDA provider has bf16 kernels.

By its list of kernels (docs/OperatorKernels.md of ONNX Runtime) that provider has none for InstanceNormalization in
bf16, nor in any type in the version of opset 22, which bf16 convolutions need; the session is then refused. It has one
for LayerNormalization, which does the same to the last axis of [N, groups, elements]. Resize has no bf16 kernel
either; it moves pixels, so that computing it in float32 changes no number.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.network_io import name_nodes, tensor_shapes


def in_cuda_bf16_form(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Rewrite what has another form, and name what must compute in float32.

    Args:
        model: float32, opset 17 or later; unchanged.

    Returns:
        A copy, its nodes named, and the names of those that have no bf16 kernel.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    name_nodes(copy)
    shapes = tensor_shapes(copy)
    weights = {entry.name: entry for entry in copy.graph.initializer}
    for place, node in enumerate(copy.graph.node):
        if node.op_type == "InstanceNormalization":
            shape = shapes.get(node.input[0], ())
            unit, zero = (numpy_helper.to_array(weights[name]) if name in weights else None for name in node.input[1:3])
            if len(shape) == 3 and shape[2] and _all(unit, 1) and _all(zero, 0):
                copy.graph.node[place].CopyFrom(_layer_norm(copy.graph, node, shape[2]))
    read = {name for node in copy.graph.node for name in node.input}
    for entry in [entry for entry in copy.graph.initializer if entry.name not in read]:
        copy.graph.initializer.remove(entry)
    onnx.checker.check_model(copy)
    no_kernel = ("InstanceNormalization", "Resize")
    return copy, tuple(node.name for node in copy.graph.node if node.op_type in no_kernel)


def _layer_norm(graph: onnx.GraphProto, node: onnx.NodeProto, num_elements: int) -> onnx.NodeProto:
    gain = f"ones_{num_elements}"
    if all(entry.name != gain for entry in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.ones(num_elements, np.float32), gain))
    epsilon = next((entry.f for entry in node.attribute if entry.name == "epsilon"), 1e-5)
    name = node.name.replace("InstanceNormalization", "LayerNormalization")
    return helper.make_node("LayerNormalization", [node.input[0], gain], node.output, name, axis=-1, epsilon=epsilon)


def _all(values: np.ndarray | None, number: float) -> bool:
    return values is not None and bool((values == number).all())
