"""Facts of a graph: what follows from the inputs is found, what only looks so is not believed."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from export.graph_facts import BATCH, OPEN, GraphFacts, Shape, free_name, is_standard

SIZES = """int64[4] image = {-1, 6, 3, 5}, int64[4] turned = {0, 6, 5, 3}, int64[3] folded = {1, -1, 15},
    int64[2] all = {-1, 90}, int64[2] half = {-1, 45}, float[4] twice = {1, 1, 2, 2}, float[4] more = {2, 1, 2, 2}"""


def facts(text: str, io: str = "float[N, 6, 3, 5] x, float[M] t", out: str = "float[N, A, B, D] y") -> GraphFacts:
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]> network ({io}) => ({out}) <{SIZES}> {{ {text} }}"""
    )
    return GraphFacts(model)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("y = Neg(x)", (BATCH, 6, 3, 5)),
        ("a = Reshape(x, all) y = Reshape(a, image)", (BATCH, 6, 3, 5)),
        ("a = Reshape<allowzero=1>(x, all) b = Reshape(a, image) y = Reshape(b, turned)", (BATCH, 6, 5, 3)),
        ("a = Reshape(x, folded) y = Reshape(a, image)", (OPEN, 6, 3, 5)),
        ("a = Reshape(x, half) y = Reshape(a, image)", (OPEN, 6, 3, 5)),
        ("a = Resize<mode=\"nearest\">(x, , twice) y = Neg(a)", (BATCH, 6, 6, 10)),
        ("a = Resize<mode=\"nearest\">(x, , more) y = Neg(a)", (OPEN, 6, 6, 10)),
        ("s = Shape(x) y = Reshape(x, s)", (BATCH, 6, 3, 5)),
        ("a = Concat<axis=0>(x, x) y = Neg(a)", (OPEN, 6, 3, 5)),
    ],
)  # fmt: skip
def test_shapes(text: str, shape: Shape) -> None:
    assert facts(text).shapes["y"] == shape


def test_names_of_sizes_may_repeat() -> None:
    """The file calls height, width and batch by one name."""
    found = facts("a = Transpose<perm=[2, 1, 0, 3]>(x) y = Neg(a)", io="float[N, 6, N, N] x, float[N] t")
    assert found.shapes["y"] == (OPEN, 6, BATCH, OPEN)


def test_what_a_file_says_of_its_output_is_not_believed() -> None:
    assert facts("y = NonZero(x)", out="int64[4, 7] y").shapes["y"] == (4, OPEN)


def test_readers_in_subgraphs() -> None:
    text = "c = ReduceMax<keepdims=0>(t) d = Cast<to=9>(c) a = Neg(x) b = If(d) <then_branch = e () => "
    text += "(float[N, 6, 3, 5] u) { u = Neg(a) }, else_branch = f () => (float[N, 6, 3, 5] v) { v = Abs(a) }> "
    text += "y = Exp(b)"
    found = facts(text)
    assert [node.op_type for node in found.readers["a"]] == ["If"]
    assert found.only_reader("a", "If") is not None
    assert [found.free_name(name) for name in ("u", "u", "new")] == ["u_1", "u_2", "new"]


def test_weights_that_can_be_fed_are_no_constants() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]> network (float[N, 2] x) => (float[N, 2] y) <float[1] w = {1}>
        { y = Mul(x, w) }"""
    )
    assert GraphFacts(model).numbers("w") is not None
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]))
    assert GraphFacts(model).numbers("w") is None


def test_an_operator_of_another_domain() -> None:
    assert is_standard(helper.make_node("Add", [], []), "Add", "Sub")
    assert not is_standard(helper.make_node("Add", [], [], domain="somebody"), "Add")


def test_free_names() -> None:
    taken = {"a", "a_1"}
    assert [free_name("a", taken), free_name("a", taken), free_name("b", taken)] == ["a_2", "a_3", "b"]
