"""What somebody else may have done to an ONNX file: 16-bit floats that round the prediction, and some that do not."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

FLOAT, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
Change = Callable[[ModelProto], None]


def in_type(low: int, tensor: TensorProto, name: str) -> TensorProto:
    values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(low))
    return numpy_helper.from_array(values, name)


def computes(low: int) -> Change:
    """x and the tables in another type, back to float32 at the end."""

    def change(model: ModelProto) -> None:
        graph = model.graph
        for table in graph.initializer:
            if table.data_type == FLOAT:
                table.CopyFrom(in_type(low, table, table.name))
        product = next(node for node in graph.node if "x" in node.input)
        product.input[list(product.input).index("x")] = "x_low"
        graph.node.insert(0, helper.make_node("Cast", ["x"], ["x_low"], to=low))
        ends_with(model, helper.make_node("Cast", ["inner"], ["prediction"], to=FLOAT))

    return change


def ends_with(model: ModelProto, *nodes: onnx.NodeProto) -> None:
    """Nodes after what was the end: they read `inner`, and make the prediction."""
    model.graph.node[-1].output[0] = "inner"
    model.graph.node.extend(nodes)


def casts_at_the_end(low: int) -> Change:
    return lambda model: ends_with(
        model,
        helper.make_node("Cast", ["inner"], ["rounded"], to=low),
        helper.make_node("Cast", ["rounded"], ["prediction"], to=FLOAT),
    )


def stores_weights(low: int) -> Change:
    """The tables in another type; everything is computed in float32."""

    def change(model: ModelProto) -> None:
        for table in [entry for entry in model.graph.initializer if entry.data_type == FLOAT]:
            name = table.name
            table.CopyFrom(in_type(low, table, f"{name}_low"))
            model.graph.node.insert(0, helper.make_node("Cast", [f"{name}_low"], [name], to=FLOAT))

    return change


def has_a_constant(low: int) -> Change:
    one = helper.make_tensor("", low, [1], [1.0])
    return lambda model: ends_with(
        model,
        helper.make_node("Constant", [], ["one_low"], value=one),
        helper.make_node("CastLike", ["inner", "one_low"], ["rounded"]),
        helper.make_node("CastLike", ["rounded", "x"], ["prediction"]),
    )


def fills_a_tensor(low: int) -> Change:
    value = helper.make_tensor("", low, [1], [1.0])
    return lambda model: ends_with(
        model,
        helper.make_node("Shape", ["inner"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["ones_low"], value=value),
        helper.make_node("Cast", ["ones_low"], ["ones"], to=FLOAT),
        helper.make_node("Mul", ["inner", "ones"], ["prediction"]),
    )


def rounds_in_a_branch(low: int) -> Change:
    """In the inner of two nested subgraphs, which read `inner` from outside."""

    def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, FLOAT, None)])

    down = helper.make_node("Cast", ["inner"], ["rounded"], to=low)
    kept = branch("kept", helper.make_node("Identity", ["inner"], ["kept"]))
    rounded = branch("up", down, helper.make_node("Cast", ["rounded"], ["up"], to=FLOAT))
    nested = helper.make_node("If", ["always"], ["nested"], then_branch=rounded, else_branch=kept)
    same = branch("same", helper.make_node("Identity", ["inner"], ["same"]))
    return lambda model: ends_with(
        model,
        helper.make_node("Constant", [], ["always"], value=helper.make_tensor("", TensorProto.BOOL, [], [True])),
        helper.make_node("If", ["always"], ["prediction"], then_branch=branch("nested", nested), else_branch=same),
    )


def calls_a_function(low: int) -> Change:
    """Which calls another, that rounds."""
    opset = [helper.make_opsetid("", 18), helper.make_opsetid("them", 1)]
    down, up = helper.make_node("Cast", ["a"], ["r"], to=low), helper.make_node("Cast", ["r"], ["b"], to=FLOAT)
    inner = helper.make_node("Round", ["a"], ["b"], domain="them")

    def change(model: ModelProto) -> None:
        model.functions.append(helper.make_function("them", "Round", ["a"], ["b"], [down, up], opset))
        model.functions.append(helper.make_function("them", "Finish", ["a"], ["b"], [inner], opset))
        model.opset_import.append(helper.make_opsetid("them", 1))
        ends_with(model, helper.make_node("Finish", ["inner"], ["prediction"], domain="them"))

    return change


def unread_table(model: ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("unread", FLOAT16, [2], [1.0, 2.0]))


def unread_branch(model: ModelProto) -> None:
    unread_table(model)
    model.graph.node.append(helper.make_node("Cast", ["x"], ["x_low"], to=BFLOAT16))
    model.graph.node.append(helper.make_node("CastLike", ["x_low", "unread"], ["never"]))
    model.graph.value_info.append(helper.make_tensor_value_info("never", FLOAT16, None))


def unread_function(model: ModelProto) -> None:
    calls_a_function(FLOAT16)(model)
    model.functions[-1].name = "inner"  # a value that is read has the same name
    model.graph.node[-1].CopyFrom(helper.make_node("Identity", ["inner"], ["prediction"]))


def eight_bits(model: ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("scale", FLOAT, [], [0.01]))
    model.graph.initializer.append(helper.make_tensor("zero_point", TensorProto.INT8, [], [0]))
    ends_with(
        model,
        helper.make_node("QuantizeLinear", ["inner", "scale", "zero_point"], ["whole"]),
        helper.make_node("DequantizeLinear", ["whole", "scale", "zero_point"], ["prediction"]),
    )


def sixty_four_bits(model: ModelProto) -> None:
    casts_at_the_end(TensorProto.DOUBLE)(model)
    model.graph.doc_string = model.producer_name = "FLOAT16"
