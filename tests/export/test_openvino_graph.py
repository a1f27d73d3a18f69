"""Rewrites for OpenVINO: the same network, and hands off what they do not fit."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from export import openvino_graph as module
from export.fold_time import fold_time
from export.openvino_graph import Rewriting, rewrite_for_openvino

RESIZE = 'Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, none, scales)'
CONV = "Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(u, kernel, bias)"
# (channels in, channels out, height, width)
SIZE = (3, 2, 5, 6)


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MIN_MULTIPLICATIONS", 1)


def upsampling(
    resize: str = RESIZE,
    conv: str = CONV,
    after: str = "prediction = Relu(h)",
    channels: tuple[int, int] = SIZE[:2],
    more: str = "",
) -> onnx.ModelProto:
    (c_in, c_out), (height, width) = channels, SIZE[2:]
    text = f"""<ir_version: 9, opset_import: ["" : 18]>
    network (float[N, {c_in}, {height}, {width}] x, float[N] t) => (float[N, C, H, W] prediction)
    <float[4] scales = {{1, 1, 2, 2}}{more}> {{ u = {resize.replace("none", "")} h = {conv} {after} }}"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("kernel", (c_out, c_in, 3, 3)), ("bias", (c_out,))):
        values = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.checker.check_model(model, full_check=True)
    return model


def predict(model: onnx.ModelProto, t: np.ndarray | None = None) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    c_in, _, height, width = SIZE
    t = np.zeros(4, np.float32) if t is None else t
    feed = {"x": np.random.default_rng(1).standard_normal((4, c_in, height, width)).astype(np.float32), "t": t}
    prediction: np.ndarray = session.run(None, {entry.name: feed[entry.name] for entry in session.get_inputs()})[0]
    return prediction


def rewritten(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Rewriting]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy, rewrite_for_openvino(copy, "t")


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(
    "ways",
    [
        'coordinate_transformation_mode="asymmetric", nearest_mode="floor"',
        'coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_floor"',
        'coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_ceil"',
        'coordinate_transformation_mode="pytorch_half_pixel", nearest_mode="round_prefer_ceil"',
    ],
)
def test_upsampling_and_convolution_become_one(ways: str) -> None:
    model = upsampling(f'Resize<mode="nearest", {ways}>(x, none, scales)')
    found, rewriting = rewritten(model)
    assert rewriting == Rewriting(0, 1)
    assert ops(found) == ["ConvTranspose", "Relu"]
    assert {entry.name for entry in found.graph.initializer} == {"scales", "kernel_transposed", "bias"}
    np.testing.assert_allclose(predict(found), predict(model), rtol=0, atol=5e-6)
    assert predict(found).shape == (4, 2, 10, 12)


def test_a_convolution_without_bias() -> None:
    model = upsampling(conv=CONV.replace(", bias", ""))
    del model.graph.initializer[-1]
    found, rewriting = rewritten(model)
    assert rewriting.transposed_convolutions == 1
    np.testing.assert_allclose(predict(found), predict(model), rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"resize": 'Resize<mode="linear", coordinate_transformation_mode="asymmetric">(x, none, scales)'},
        {"resize": 'Resize<mode="nearest", coordinate_transformation_mode="align_corners">(x, none, scales)'},
        {"resize": RESIZE.replace("floor", "ceil")},
        {"conv": CONV.replace("1,1,1,1", "0,0,0,0")},
        {"conv": CONV.replace("pads", "strides=[2,2], pads")},
        {"conv": CONV.replace("pads", "dilations=[2,2], pads")},
        {"after": "m = ReduceMax<keepdims=1>(u) prediction = Add(h, m)"},
    ],
)
def test_other_upsamplings_stay(changes: dict[str, str]) -> None:
    model = upsampling(**changes)
    found, rewriting = rewritten(model)
    assert rewriting == Rewriting(0, 0)
    assert ops(found) == ops(model)


def test_other_scales_stay() -> None:
    model = upsampling()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([1, 1, 3, 3], np.float32), "scales"))
    assert rewritten(model)[1] == Rewriting(0, 0)


def test_a_small_convolution_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    multiplications = 10 * 12 * 2 * 3 * 9
    monkeypatch.setattr(module, "_MIN_MULTIPLICATIONS", multiplications)
    assert rewritten(upsampling())[1].transposed_convolutions == 1
    monkeypatch.setattr(module, "_MIN_MULTIPLICATIONS", multiplications + 1)
    assert rewritten(upsampling())[1].transposed_convolutions == 0


def test_lookups_are_merged() -> None:
    text = """<ir_version: 9, opset_import: ["" : 18]>
    network (float[N, 3, 5, 6] x, float[N] t) => (float[N, 3, 5, 6] prediction)
    <int64[4] column = {-1, 1, 1, 1}, int64[1] ones = {1}, float[1,3] row = {1, 2, 3}, int64[2] places = {2, 3}> {
        s = Sin(t) a = Reshape(s, column) b = Unsqueeze(t, ones) c = Mul(b, row) d = Unsqueeze(c, places)
        e = Cos(t) f = Reshape(e, column) y = Mul(x, a) z = Mul(y, f) prediction = Add(z, d) }"""
    folded, folding = fold_time(onnx.parser.parse_model(text), 50)
    assert folding.num_gathers == 3
    found, rewriting = rewritten(folded)
    assert rewriting == Rewriting(3, 0)
    assert ops(found) == ["Gather", "Split", "Mul", "Mul", "Add"]
    t = np.array([0, 49, 7, 7])
    np.testing.assert_array_equal(predict(found, t), predict(folded, t))
    tables = [entry for entry in found.graph.initializer if entry.name == "time_tables"]
    assert [list(entry.dims) for entry in tables] == [[50, 5, 1, 1]]
    assert len([entry for entry in found.graph.initializer if entry.dims[:1] == [50]]) == 1


def test_old_opsets_stay_as_they_are() -> None:
    model = upsampling()
    model.opset_import[0].version = 11
    assert rewritten(model)[1] == Rewriting(0, 0)


def test_two_upsamplings_share_a_kernel() -> None:
    again = f"w = {RESIZE.replace('(x', '(h').replace('none', '')} k = Conv<pads=[1,1,1,1]>(w, kernel, bias)"
    after = f"{again} m = Mul(k, kernel_transposed) prediction = Relu(m)"
    model = upsampling(after=after, channels=(3, 3), more=", float[1] kernel_transposed = {2}")
    found, rewriting = rewritten(model)
    assert rewriting.transposed_convolutions == 2
    np.testing.assert_allclose(predict(found), predict(model), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("reader", ["u", "kernel"])
def test_what_a_subgraph_reads_too_stays(reader: str) -> None:
    branch = f"() => (float[A, B, E, F] {{0}}) {{{{ {{0}} = {{1}}({reader}) }}}}"
    body = f"then_branch = a {branch.format('v', 'Neg')}, else_branch = b {branch.format('w', 'Abs')}"
    after = f"m = If(yes) <{body}> n = ReduceMax<keepdims=0>(m) prediction = Add(h, n)"
    model = upsampling(after=after, more=", bool yes = {1}")
    found, rewriting = rewritten(model)
    assert rewriting.transposed_convolutions == (reader == "kernel")
    assert "kernel" in {entry.name for entry in found.graph.initializer}
    np.testing.assert_allclose(predict(found), predict(model), rtol=0, atol=5e-6)


def test_tables_of_another_length_or_with_other_readers() -> None:
    text = """<ir_version: 9, opset_import: ["" : 18]>
    network (float[N, 3, 5, 6] x, int64[N] t) => (float[N, 3, 5, 6] prediction)
    <float[1] time_tables = {2}> {
        a = Gather(one, t) b = Gather(two, t) c = Gather(long, t) m = ReduceMax<keepdims=0>(one)
        y = Mul(x, a) z = Mul(y, b) v = Mul(z, c) w = Mul(v, time_tables) prediction = Add(w, m) }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, length in (("one", 9), ("two", 9), ("long", 12)):
        table = rng.standard_normal((length, 3, 1, 1)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(table, name))
    found, rewriting = rewritten(model)
    assert rewriting.merged_lookups == 2
    t = np.array([0, 8, 3, 3])
    np.testing.assert_array_equal(predict(found, t), predict(model, t))
