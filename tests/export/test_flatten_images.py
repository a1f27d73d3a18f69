"""Images as rows for OpenVINO: the same network, and hands off what does not fit."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from export.graph_facts import symbolic_shapes
from export.openvino_graph import flatten_images

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
