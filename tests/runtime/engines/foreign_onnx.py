"""What somebody else may have done to an ONNX file: 16-bit floats that round the prediction, and some that do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from runtime.engines.onnx_file import read_onnx

FLOAT, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
Change = Callable[[ModelProto], None]


def onnx_precision(path: Path) -> str:
    """Of a file, by all that there is to know of it."""
    return read_onnx(path).precision


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


def rounds_to_eight_bits(kind: int = TensorProto.INT8, written: bool = True) -> Change:
    """Quantized and back at the end; the type may be the operator's default, and is then written nowhere."""
    inputs = ["scale", "zero_point"] if written else ["scale"]

    def change(model: ModelProto) -> None:
        model.graph.initializer.append(helper.make_tensor("scale", FLOAT, [], [0.01]))
        if written:
            model.graph.initializer.append(helper.make_tensor("zero_point", kind, [], [0]))
        ends_with(
            model,
            helper.make_node("QuantizeLinear", ["inner", *inputs], ["whole"]),
            helper.make_node("DequantizeLinear", ["whole", *inputs], ["prediction"]),
        )

    return change


def stores_eight_bits(model: ModelProto) -> None:
    """The tables as whole numbers with a scale, by ordinary operators."""
    for table in [entry for entry in model.graph.initializer if entry.data_type == FLOAT]:
        values = numpy_helper.to_array(table)
        scale = float(abs(values).max()) / 127 or 1.0
        name = table.name
        table.CopyFrom(numpy_helper.from_array((values / scale).round().astype("int8"), f"{name}_whole"))
        model.graph.initializer.append(helper.make_tensor(f"{name}_scale", FLOAT, [], [scale]))
        model.graph.node.insert(0, helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], [name]))
        model.graph.node.insert(0, helper.make_node("Cast", [f"{name}_whole"], [f"{name}_float"], to=FLOAT))


def rounds_dynamically(model: ModelProto) -> None:
    """Scale and zero point from the values themselves."""
    ends_with(
        model,
        helper.make_node("DynamicQuantizeLinear", ["inner"], ["whole", "scale", "zero_point"]),
        helper.make_node("DequantizeLinear", ["whole", "scale", "zero_point"], ["prediction"]),
    )


def multiplies_whole_numbers(model: ModelProto) -> None:
    """x·I along the last axis, as ONNX Runtime's quantize_dynamic writes a product."""
    width = model.graph.input[0].type.tensor_type.shape.dim[3].dim_value
    one = numpy_helper.from_array((127 * numpy.eye(width)).astype("int8"), "one")
    model.graph.initializer.append(one)
    model.graph.initializer.append(helper.make_tensor("unit", FLOAT, [], [1 / 127]))
    ends_with(
        model,
        helper.make_node("DynamicQuantizeLinear", ["inner"], ["whole", "scale", "zero_point"]),
        helper.make_node("MatMulInteger", ["whole", "one", "zero_point"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["float_sums"], to=FLOAT),
        helper.make_node("Mul", ["scale", "unit"], ["both"]),
        helper.make_node("Mul", ["float_sums", "both"], ["prediction"]),
    )


def quantizes_in_a_function(model: ModelProto) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["a"], ["whole", "scale", "zero_point"]),
        helper.make_node("DequantizeLinear", ["whole", "scale", "zero_point"], ["b"]),
    ]
    model.functions.append(helper.make_function("them", "Q", ["a"], ["b"], nodes, [helper.make_opsetid("", 18)]))
    model.opset_import.append(helper.make_opsetid("them", 1))
    ends_with(model, helper.make_node("Q", ["inner"], ["prediction"], domain="them"))


def sixty_four_bits(model: ModelProto) -> None:
    casts_at_the_end(TensorProto.DOUBLE)(model)
    model.graph.doc_string = model.producer_name = "FLOAT16"
