"""Rewrites for OpenVINO: the same network, and hands off what they do not fit."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from export import openvino_graph as module
from export.fold_time import fold_time
from export.graph_facts import symbolic_shapes
from export.openvino_graph import Rewriting, flatten_images, rewrite_for_openvino

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


C, H, W = 6, 3, 5
NORM = "g = Reshape(x, groups) n = InstanceNormalization(g, one, zero) b = Reshape(n, image) "
AFFINE = "s = Mul(b, gain) a = Add(shift, s) "
SILU = "p = Sigmoid(a) y = Mul(a, p) "


def network(body: str, more: str = "") -> onnx.ModelProto:
    """A group normalization of x [N, 6, 3, 5] in three groups, then `body`, which reads b and makes `prediction`."""
    text = f"""<ir_version: 9, opset_import: ["" : 18]>
    network (float[N, {C}, {H}, {W}] x, float[N, {C}, 1, 1] scale) => (float[N, K, L, M] prediction{more})
    <int64[3] groups = {{0, 3, -1}}, int64[4] image = {{0, {C}, {H}, {W}}},
     float[3] one = {{1, 1, 1}}, float[3] zero = {{0, 0, 0}}, float[1] two = {{2}}> {{ {NORM} {body} }}"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("gain", (C, 1, 1)), ("shift", (1, C, 1, 1)), ("row", (W,)), ("kernel", (2, C, 3, 3))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return model


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    feed = {"x": rng.standard_normal((4, C, H, W)), "scale": rng.standard_normal((4, C, 1, 1))}
    return session.run(None, {entry.name: feed[entry.name].astype(np.float32) for entry in session.get_inputs()})


def flattened(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    onnx.checker.check_model(model, full_check=True)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    num = flatten_images(copy)
    onnx.checker.check_model(copy, full_check=True)
    for ours, theirs in zip(run(copy), run(model), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    return copy, num


def ranks(model: onnx.ModelProto, op_type: str) -> list[int]:
    """Of the results of every node of a kind."""
    shapes = symbolic_shapes(model)
    return [len(shapes[node.output[0]]) for node in model.graph.node if node.op_type == op_type]


def test_normalization_and_silu_see_rows() -> None:
    model = network(f"{AFFINE} {SILU} prediction = Conv<pads=[1, 1, 1, 1]>(y, kernel)")
    found, num = flattened(model)
    assert num == 1
    for op_type in ("Mul", "Add", "Sigmoid"):
        assert set(ranks(model, op_type)) == {4}
        assert set(ranks(found, op_type)) == {3}
    assert ranks(found, "Conv") == [4]
    # One Reshape more: before the convolution.
    assert len(ranks(found, "Reshape")) == len(ranks(model, "Reshape")) + 1


def test_scale_and_shift_that_depend_on_the_timestep() -> None:
    body = f"{AFFINE} k = Add(scale, two) m = Mul(a, k) t = Add(m, scale) prediction = Relu(t)"
    found, num = flattened(network(body))
    assert num == 1
    assert ranks(found, "Relu") == [3]
    # The two operands that come from the timestep, and what else there was: x, the image and the result.
    reshaped = [node.input[0] for node in found.graph.node if node.op_type == "Reshape"]
    assert sorted(reshaped) == ["k", "n", "prediction_rows", "scale", "x"]


def test_a_value_that_others_read_stays_an_image_for_them() -> None:
    body = f"{AFFINE} {SILU} c = Conv<pads=[1, 1, 1, 1]>(a, kernel) d = Conv<pads=[1, 1, 1, 1]>(y, kernel)"
    found, num = flattened(network(f"{body} prediction = Add(c, d)"))
    assert num == 1
    assert sorted(ranks(found, "Add")) == [3, 4]


def test_outputs_keep_their_names_and_shapes() -> None:
    found, num = flattened(network(f"{AFFINE} {SILU} prediction = Relu(y)", f", float[N, {C}, {H}, {W}] a"))
    assert num == 1
    assert [entry.name for entry in found.graph.output] == ["prediction", "a"]


def test_what_varies_within_a_channel_stays() -> None:
    model = network("s = Mul(b, row) prediction = Add(s, x)")
    found, num = flattened(model)
    assert num == 0
    assert found == model


def test_an_operand_with_five_axes_ends_the_rows() -> None:
    five = "places = Constant<value_ints = [0]>() f = Unsqueeze(two, places) e = Expand(f, ones)"
    model = network(f"ones = Constant<value_ints = [1, 1, 1, 1, 1]>() {five} m = Mul(b, e) prediction = Squeeze(m)")
    assert flattened(model)[1] == 0


@pytest.mark.parametrize(
    "operand",
    [
        "k = test.somebody.Own(x)",  # nobody knows what another domain's operation gives
        "i = NonZero(x) j = Squeeze(i) k = Reshape(x, j)",  # a type is inferred, a shape is not
    ],
)
def test_an_operand_of_unknown_shape_ends_the_rows(operand: str) -> None:
    model = network(f"{operand} prediction = Mul(b, k)")
    model.opset_import.append(onnx.helper.make_opsetid("test.somebody", 1))
    before = model.SerializeToString()
    assert flatten_images(model) == 0
    assert model.SerializeToString() == before


def test_a_sum_with_an_image_ends_the_rows() -> None:
    found, num = flattened(network(f"{AFFINE} prediction = Add(a, x)"))
    assert num == 1
    assert sorted(ranks(found, "Add")) == [3, 4]


@pytest.mark.parametrize("body", ["prediction = Softmax<axis=3>(b)", "prediction = Transpose<perm=[0, 1, 3, 2]>(b)"])
def test_what_needs_height_and_width_stays(body: str) -> None:
    assert flattened(network(body))[1] == 0


def on_batches(text: str) -> None:
    """A network of x [N, 6, 3, 5] is flattened and stays the same at batches of 1, 2 and 5."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]>
        network (float[N, {C}, {H}, {W}] x) => (float[N, {C}, {H}, {W}] prediction)
        <int64[3] folded = {{1, -1, {H * W}}}, int64[4] image = {{-1, {C}, {H}, {W}}}, int64[2] all = {{-1, 90}},
         float[1] two = {{2}}, int64[1] last = {{2}}, bool yes = {{1}}> {{ {text} }}"""
    )
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    assert flatten_images(rewritten) > 0
    sessions = [
        ort.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"])
        for each in (model, rewritten)
    ]
    for batch in (1, 2, 5):
        x = np.random.default_rng(batch).standard_normal((batch, C, H, W)).astype(np.float32)
        expected, found = (session.run(None, {"x": x})[0] for session in sessions)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_an_image_from_a_folded_batch() -> None:
    """The first axis of what becomes the image is not the batch, nor as long."""
    on_batches(
        "f = Reshape(x, folded) m = ReduceMean(f, last) c = Sub(f, m) i = Reshape(c, image) a = Tanh(i) "
        "prediction = Add(a, x)"
    )


@pytest.mark.parametrize("allowzero", [0, 1])
def test_an_image_from_rows_of_another_length(allowzero: int) -> None:
    on_batches(f"f = Reshape(x, all) i = Reshape<allowzero={allowzero}>(f, image) a = Tanh(i) prediction = Add(a, x)")


def test_names_that_are_taken_and_a_subgraph_that_reads_an_image() -> None:
    branch = "() => (float[N, 6, 3, 5] {0}) {{ {0} = {1}(a, x) }}"
    on_batches(
        "a_rows = Neg(x) rows_0_6_15 = Neg(a_rows) f = Reshape(rows_0_6_15, all) i = Reshape(f, image) a = Tanh(i) "
        f"s = If(yes) <then_branch = t {branch.format('i_rows', 'Add')}, else_branch = e {branch.format('v', 'Sub')}> "
        "prediction = Add(s, a_rows)"
    )


def test_an_operator_of_another_domain_only_bears_the_name() -> None:
    model = network("s = test.somebody.Sigmoid(b) prediction = Identity(s)")
    model.opset_import.append(onnx.helper.make_opsetid("test.somebody", 1))
    before = model.SerializeToString()
    assert flatten_images(model) == 0
    assert model.SerializeToString() == before
