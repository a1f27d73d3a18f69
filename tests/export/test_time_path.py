"""Rows of samples: proven where row i depends on t[i] alone, and nowhere else."""

from __future__ import annotations

import onnx
import pytest

from export.graph_facts import GraphFacts
from export.time_path import Kind, kinds_of

ROWS = {
    "y = Sin(t)": Kind.ROWS,
    "y = Reshape(t, column)": Kind.ROWS,
    "a = Unsqueeze(t, one) y = MatMul(a, row)": Kind.ROWS,
    "a = Unsqueeze(t, one) y = Gemm(a, row, bias)": Kind.ROWS,
    "a = Unsqueeze(t, one) y = Gemm(a, row, five)": Kind.OTHER,
    "a = Cast<to=7>(t) y = Gather(table, a)": Kind.ROWS,
    "a = Unsqueeze(t, one) y = Concat<axis=1>(a, a)": Kind.ROWS,
    "a = Unsqueeze(t, one) y = ReduceMean<keepdims=0>(a, one)": Kind.ROWS,
    "a = Unsqueeze(t, one) y = ReduceMean<keepdims=0>(a, minus)": Kind.ROWS,
    "a = Unsqueeze(t, one) y = ReduceMean<keepdims=1>(a, first)": Kind.OTHER,
    "a = Unsqueeze(t, one) y = ReduceMean<keepdims=1>(a)": Kind.OTHER,
    "y = Expand(single, shape)": Kind.FIXED,
    "a = Shape(x) b = Gather(a, first) y = Expand(single, b)": Kind.ROWS,
    "a = Shape(x) b = Gather(a, first) y = Expand(five, b)": Kind.BATCH_SIZE,
    "a = Shape(x) y = Cast<to=1>(a)": Kind.BATCH_SIZE,
    "a = Size(t) b = Cast<to=1>(a) y = Mul(t, b)": Kind.OTHER,
    "y = Mul(t, single)": Kind.ROWS,
    "y = Mul(t, five)": Kind.OTHER,
    "a = Unsqueeze(t, first) y = Mul(t, a)": Kind.OTHER,
    "y = CumSum(t, axis)": Kind.OTHER,
    "y = RandomNormalLike(t)": Kind.OTHER,
    "y = Dropout(t)": Kind.ROWS,
    "y = somebody.Sin(t)": Kind.OTHER,
    "a = Neg(x) y = ReduceMax<keepdims=0>(a)": Kind.OTHER,
    "a = NonZero(x) b = Size(a) y = Cast<to=1>(b)": Kind.OTHER,
    "a = Unsqueeze(t, one) y = Softmax<axis=1>(a)": Kind.ROWS,
    "a = Unsqueeze(t, one) y = Softmax<axis=-2>(a)": Kind.OTHER,
    "a = Unsqueeze(t, one) y = Slice(a, first, one, one)": Kind.ROWS,
    "y = Slice(t, first, one, first)": Kind.OTHER,
    "a = Unsqueeze(t, one) y = Transpose<perm=[1, 0]>(a)": Kind.OTHER,
}


@pytest.mark.parametrize(("text", "kind"), list(ROWS.items()), ids=list(ROWS))
def test_rows_of_samples(text: str, kind: Kind) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18, "somebody" : 1]>
        network (float[N, 1, 4, 4] x, float[N] t) => (float[N] y)
        <int64[4] column = {{-1, 1, 1, 1}}, int64[1] one = {{1}}, int64[1] first = {{0}}, int64[1] minus = {{-1}},
         float[1, 3] row = {{1, 2, 3}}, float[3] bias = {{1, 2, 3}}, float[5, 1] five = {{1, 2, 3, 4, 5}},
         float[5] table = {{1, 2, 3, 4, 5}}, float[1] single = {{2}}, int64[1] shape = {{4}}, int64 axis = {{0}}>
        {{ {text} }}"""
    )
    facts = GraphFacts(model)
    assert kinds_of(model.graph, facts, "x", "t")["y"] is kind
