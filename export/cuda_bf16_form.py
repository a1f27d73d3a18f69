"""A network rewritten with the operators for which ONNX Runtime's CUDA provider has bf16 kernels.

By its list of kernels (docs/OperatorKernels.md of ONNX Runtime) that provider has none for InstanceNormalization in
bf16, nor in any type in the version of opset 22, which bf16 convolutions need; the session is then refused. It has one
for LayerNormalization, which does the same to the last axis of [N, groups, elements]. Resize has no bf16 kernel
either; it moves pixels, so that computing it in float32 changes no number.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.graph_facts import GraphFacts, drop_unread, is_standard, name_nodes


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
    facts = GraphFacts(copy)
    ones: dict[int, str] = {}
    for place, node in enumerate(copy.graph.node):
        if is_standard(node, "InstanceNormalization"):
            shape = facts.shapes.get(node.input[0], ())
            unit, zero = (facts.numbers(name) for name in node.input[1:3])
            if len(shape) == 3 and isinstance(shape[2], int) and shape[2] and _all(unit, 1) and _all(zero, 0):
                if shape[2] not in ones:
                    name = ones[shape[2]] = facts.free_name(f"ones_{shape[2]}")
                    copy.graph.initializer.append(numpy_helper.from_array(np.ones(shape[2], np.float32), name))
                copy.graph.node[place].CopyFrom(_layer_norm(node, ones[shape[2]]))
    drop_unread(copy.graph)
    onnx.checker.check_model(copy)
    no_kernel = ("InstanceNormalization", "Resize")
    return copy, tuple(node.name for node in copy.graph.node if is_standard(node, *no_kernel))


def _layer_norm(node: onnx.NodeProto, gain: str) -> onnx.NodeProto:
    epsilon = next((entry.f for entry in node.attribute if entry.name == "epsilon"), 1e-5)
    name = node.name.replace("InstanceNormalization", "LayerNormalization")
    return helper.make_node("LayerNormalization", [node.input[0], gain], node.output, name, axis=-1, epsilon=epsilon)


def _all(values: np.ndarray | None, number: float) -> bool:
    return values is not None and bool((values == number).all())
