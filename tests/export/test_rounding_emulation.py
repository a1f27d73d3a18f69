"""Low precision emulated: every tensor is rounded as NumPy rounds it, and nothing is rounded twice."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.rounding_emulation import emulate_rounding
from runtime.formats.precision import rounded

LOW = {"fp16": (TensorProto.FLOAT16, "float16"), "bf16": (TensorProto.BFLOAT16, "bfloat16")}
WEIGHTS = np.array([1.0001, -0.7777, 3.33333, 1e-3], np.float32).reshape(1, 4, 1, 1)


def network(precision: str, text: str) -> onnx.ModelProto:
    element_type, name = LOW[precision]
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 22]> network ({name}[N, 4, 2, 2] x, int64[N] t)
        => ({name}[N, 4, 2, 2] prediction) {{ {text} }}"""
    )
    model.graph.initializer.append(helper.make_tensor("w", element_type, WEIGHTS.shape, WEIGHTS.reshape(-1).tolist()))
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((3, 4, 2, 2)).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    prediction: np.ndarray = session.run(None, {"x": x, "t": np.zeros(3, np.int64)})[0]
    return x, prediction


@pytest.mark.parametrize("precision", list(LOW))
def test_inputs_weights_and_what_lies_between_are_rounded(precision: str) -> None:
    text = "a = Mul(x, w) b = Neg(a) c = Add(b, w) d = Mul(c, c) prediction = Sub(d, a) unused = Neg(t)"
    emulated = emulate_rounding(network(precision, text))
    assert {entry.type.tensor_type.elem_type for entry in (*emulated.graph.input, *emulated.graph.output)} == {
        TensorProto.FLOAT,
        TensorProto.INT64,
    }
    x, found = run(emulated)
    x, w = rounded(x, precision), rounded(WEIGHTS, precision)
    a = rounded(x * w, precision)
    c = rounded(w - a, precision)
    np.testing.assert_array_equal(found, rounded(rounded(c * c, precision) - a, precision))
    # And it is not what a float32 network says, nor one that rounds at its ends alone.
    exact = (WEIGHTS - x * WEIGHTS) ** 2 - x * WEIGHTS
    assert (found != rounded(exact, precision)).mean() > 0.2


@pytest.mark.parametrize("precision", list(LOW))
def test_what_is_cast_to_float32_stays_exact(precision: str) -> None:
    to = LOW[precision][0]
    text = f"a = Cast<to=1>(x) b = Exp(a) c = Exp(b) prediction = Cast<to={to}>(c) u = Neg(t) v = Neg(w)"
    model = network(precision, text)
    x, found = run(emulate_rounding(model))
    exact = np.exp(np.exp(rounded(x, precision).astype(np.float64)))
    np.testing.assert_array_equal(found, rounded(exact.astype(np.float32), precision))


def test_moves_are_not_rounded_again() -> None:
    text = "a = Transpose<perm=[0, 1, 3, 2]>(x) b = Concat<axis=1>(a) prediction = Mul(b, w) u = Neg(t)"
    emulated = emulate_rounding(network("bf16", text))
    assert [node.op_type for node in emulated.graph.node].count("Cast") == 4


def test_constants_inside_the_graph() -> None:
    model = network("fp16", "c = Identity(w) a = Add(x, c) prediction = Neg(a) u = Neg(t)")
    tensor = numpy_helper.from_array(WEIGHTS.astype(np.float16))
    model.graph.node[0].CopyFrom(helper.make_node("Constant", [], ["c"], value=tensor))
    model.graph.node.append(helper.make_node("Neg", ["w"], ["unused"]))
    x, found = run(emulate_rounding(model))
    expected = rounded(rounded(x, "fp16") + rounded(WEIGHTS, "fp16"), "fp16")
    np.testing.assert_array_equal(found, -expected)
