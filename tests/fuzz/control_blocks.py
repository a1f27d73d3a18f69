"""Blocks with graphs inside: If, Loop, Scan, local functions, sequences, and what only looks random.

Their form is that of `tests.fuzz.layout_blocks`.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from tests.fuzz.network_builder import Builder, Shape

FLOAT = TensorProto.FLOAT


def branched(b: Builder, x: str, shape: Shape) -> str:
    """If on a constant, or on what the batch's shape says."""
    names = b.name(), b.name()
    then = b.subgraph("then", [helper.make_node("Tanh", [x], [names[0]])], names[0])
    other = b.subgraph("else", [helper.make_node("Sin", [x], [names[1]])], names[1])
    if b.flip():
        condition = b.constant(b.flip(), np.bool_)
    else:
        rank = b.one("Size", b.one("Shape", x))
        condition = b.one("Equal", rank, b.constant(b.pick((3, 4)), np.int64))
    return b.one("If", condition, then_branch=then, else_branch=other)


def looped(b: Builder, x: str, shape: Shape) -> str:
    """A Loop of a few iterations; its inner names may be those outside."""
    inner = b.pick(("time_table", "time_value", "x_rows")) if b.flip() else b.name()
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["keep"], ["go_on"]),
            helper.make_node("Sin", ["state"], [inner]),
            helper.make_node("Add", [inner, "state"], ["next_state"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("keep", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next_state", FLOAT, None),
        ],
    )
    times = b.constant(b.number(0, 3), np.int64)
    return b.one("Loop", times, b.constant(True, np.bool_), x, body=body)


def scanned(b: Builder, x: str, shape: Shape) -> str:
    """A Scan over the channels or the rows: a running sum."""
    axis = b.pick((1, 2, 3))
    body = helper.make_graph(
        [helper.make_node("Add", ["sum_in", "row"], ["sum_out"]), helper.make_node("Tanh", ["sum_out"], ["row_out"])],
        "scan",
        [helper.make_tensor_value_info("sum_in", FLOAT, None), helper.make_tensor_value_info("row", FLOAT, None)],
        [helper.make_tensor_value_info("sum_out", FLOAT, None), helper.make_tensor_value_info("row_out", FLOAT, None)],
    )
    first = b.reduce("ReduceMean", x, [axis], keepdims=0)
    outputs = b.add("Scan", [first, x], 2, body=body, num_scan_inputs=1, scan_input_axes=[axis],
                    scan_output_axes=[axis])  # fmt: skip
    return outputs[1]


def local_function(b: Builder, x: str, shape: Shape) -> str:
    """A function of the model itself, perhaps called by another."""
    opsets = [helper.make_opsetid("", b.opset)]
    nodes = [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["out"])]
    name = f"Silu{len(b.functions)}"
    b.functions.append(helper.make_function("them", name, ["a"], ["out"], nodes, opsets))
    b.domains["them"] = 1
    if b.flip():
        outer = f"Outer{len(b.functions)}"
        inside = [helper.make_node(name, ["a"], ["m"], domain="them"), helper.make_node("Tanh", ["m"], ["out"])]
        both = [*opsets, helper.make_opsetid("them", 1)]
        b.functions.append(helper.make_function("them", outer, ["a"], ["out"], inside, both))
        name = outer
    return b.one(name, x, domain="them")


def sequence(b: Builder, x: str, shape: Shape) -> str:
    """Channels into a sequence and back."""
    pieces = b.one("SplitToSequence", x, b.constant(1, np.int64), axis=1, keepdims=1)
    f = b.one("ConcatFromSequence", pieces, axis=1, new_axis=0)
    return b.one("Tanh", f)


def contributed(b: Builder, x: str, shape: Shape) -> str:
    """An operator of ONNX Runtime's own."""
    b.domains["com.microsoft"] = 1
    op = b.pick(("Gelu", "FastGelu", "QuickGelu", "BiasGelu", "NotThere"))
    inputs = [x, b.weights(shape[2])] if op == "BiasGelu" else [x]
    return b.one(op, *inputs, domain="com.microsoft")


BLOCKS = (branched, looped, scanned, local_function, sequence, contributed)
