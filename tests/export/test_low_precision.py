"""AutoCast as it is called, and its rounding emulated: what becomes narrow, what stays, what is rounded once."""

from __future__ import annotations

import errno

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from diffusion.errors import InputError
from export.low_precision import emulate_rounding, to_mixed_precision
from export.network_io import tensor_types
from runtime.formats.precision import rounded

FOLDED = """row = Gather(table, t) a = Mul(x, row) large = Mul(a, thousands) b = Div(large, thousands)
    c = Conv<pads=[1, 1, 1, 1]>(b, kernel) prediction = Add(c, row)"""
UNFOLDED = """tt = Reshape(t, per_sample) angle = Mul(tt, frequencies) row = Sin(angle) a = Mul(x, row)
    c = Conv<pads=[1, 1, 1, 1]>(a, kernel) prediction = Add(c, row)"""
X = np.random.default_rng(1).standard_normal((3, 4, 6, 6)).astype(np.float32)
T = np.array([999, 500, 0])


def network(text: str, t_type: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]> network (float[N, 4, 6, 6] x, {t_type}[N] t)
        => (float[N, 4, 6, 6] prediction) <float[1] thousands = {{3000}}, int64[4] per_sample = {{-1, 1, 1, 1}}>
        {{ {text} }}"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("table", (1000, 4, 1, 1)), ("kernel", (4, 4, 3, 3)), ("frequencies", (1, 4, 1, 1))):
        if name in text:
            values = rng.standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
    feed = {"x": X, "t": T}
    feed = {entry.name: feed[entry.name].astype(types[entry.type]) for entry in session.get_inputs()}
    prediction: np.ndarray = session.run(None, feed)[0]
    return prediction.astype(np.float32)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_tables_and_weights_are_narrow(precision: str, capfd: pytest.CaptureFixture[str]) -> None:
    low = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    model = network(FOLDED, "int64")
    mixed = to_mixed_precision(model, precision, (X, T))
    types = tensor_types(mixed.model)
    assert (types["x"], types["t"], types["prediction"]) == (low, TensorProto.INT64, low)
    weights = {tuple(entry.dims): entry.data_type for entry in mixed.model.graph.initializer}
    # Timesteps are larger than what stays in float32, but they are integers, and their table is no number of theirs.
    assert weights[1000, 4, 1, 1] == weights[4, 4, 3, 3] == low
    kept = [node.op_type for node in mixed.model.graph.node if node.name in mixed.kept]
    # 3000 times a standard normal number: too large for what a normalization would make of it in fp16.
    assert kept == (["Mul", "Div"] if precision == "fp16" else [])
    assert capfd.readouterr() == ("", "")
    if precision == "fp16":
        expected = run(model)
        assert np.linalg.norm(run(mixed.model) - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_shall_stay_in_float32_does(precision: str) -> None:
    model = network(UNFOLDED, "float")
    path = ["Reshape_0", "Mul_1", "Sin_2"]
    mixed = to_mixed_precision(model, precision, (X, T), keep_float32=path)
    assert list(mixed.kept) == path
    assert tensor_types(mixed.model)["t"] == TensorProto.FLOAT
    frequencies = next(entry for entry in mixed.model.graph.initializer if list(entry.dims) == [1, 4, 1, 1])
    assert frequencies.data_type == TensorProto.FLOAT


def test_a_graph_that_autocast_does_not_take() -> None:
    model = network(FOLDED, "int64")
    model.graph.node[1].input[0] = "nowhere"
    with pytest.raises(InputError, match="network: ModelOpt's AutoCast cannot convert it to fp16 .*nowhere"):
        to_mixed_precision(model, "fp16", (X, T))


def test_it_reports_on_request(capfd: pytest.CaptureFixture[str]) -> None:
    to_mixed_precision(network(FOLDED, "int64"), "bf16", (X, T), debug=True)
    output = capfd.readouterr()
    assert output.out == ""
    assert "to bf16" in output.err
    to_mixed_precision(network(FOLDED, "int64"), "bf16", (X, T))
    assert capfd.readouterr() == ("", "")


def test_no_room_for_what_autocast_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(onnx, "save", full)
    with pytest.raises(InputError, match="cannot be written there for AutoCast .No space left on device.; make room"):
        to_mixed_precision(network(FOLDED, "int64"), "fp16", (X, T))


LOW = {"fp16": (TensorProto.FLOAT16, "float16"), "bf16": (TensorProto.BFLOAT16, "bfloat16")}
WEIGHTS = np.array([1.0001, -0.7777, 3.33333, 1e-3], np.float32).reshape(1, 4, 1, 1)


def low_network(precision: str, text: str) -> onnx.ModelProto:
    element_type, name = LOW[precision]
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 22]> network ({name}[N, 4, 2, 2] x, int64[N] t)
        => ({name}[N, 4, 2, 2] prediction) {{ {text} }}"""
    )
    model.graph.initializer.append(helper.make_tensor("w", element_type, WEIGHTS.shape, WEIGHTS.reshape(-1).tolist()))
    onnx.checker.check_model(model, full_check=True)
    return model


def run_low(model: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((3, 4, 2, 2)).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    prediction: np.ndarray = session.run(None, {"x": x, "t": np.zeros(3, np.int64)})[0]
    return x, prediction


@pytest.mark.parametrize("precision", list(LOW))
def test_inputs_weights_and_what_lies_between_are_rounded(precision: str) -> None:
    text = "a = Mul(x, w) b = Neg(a) c = Add(b, w) d = Mul(c, c) prediction = Sub(d, a) unused = Neg(t)"
    emulated = emulate_rounding(low_network(precision, text))
    assert {entry.type.tensor_type.elem_type for entry in (*emulated.graph.input, *emulated.graph.output)} == {
        TensorProto.FLOAT,
        TensorProto.INT64,
    }
    x, found = run_low(emulated)
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
    model = low_network(precision, text)
    x, found = run_low(emulate_rounding(model))
    exact = np.exp(np.exp(rounded(x, precision).astype(np.float64)))
    np.testing.assert_array_equal(found, rounded(exact.astype(np.float32), precision))


def test_moves_are_not_rounded_again() -> None:
    text = "a = Transpose<perm=[0, 1, 3, 2]>(x) b = Concat<axis=1>(a) prediction = Mul(b, w) u = Neg(t)"
    emulated = emulate_rounding(low_network("bf16", text))
    assert [node.op_type for node in emulated.graph.node].count("Cast") == 4


def test_constants_inside_the_graph() -> None:
    model = low_network("fp16", "c = Identity(w) a = Add(x, c) prediction = Neg(a) u = Neg(t)")
    tensor = numpy_helper.from_array(WEIGHTS.astype(np.float16))
    model.graph.node[0].CopyFrom(helper.make_node("Constant", [], ["c"], value=tensor))
    model.graph.node.append(helper.make_node("Neg", ["w"], ["unused"]))
    x, found = run_low(emulate_rounding(model))
    expected = rounded(rounded(x, "fp16") + rounded(WEIGHTS, "fp16"), "fp16")
    np.testing.assert_array_equal(found, -expected)
