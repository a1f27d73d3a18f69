"""Group normalization in each of its forms: the same network every time, and what has another meaning is left alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from diffusion.errors import InputError
from export.normalization import in_cuda_bf16_form, write_group_norm

C, G = 6, 3


def network(opset: int, text: str, rank: int = 4) -> onnx.ModelProto:
    size = "5, 4" if rank == 4 else "20"
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : {opset}]>
        network (float[N, {C}, {size}] x) => (float[N, {C}, {size}] y)
        <int64[3] groups = {{0, {G}, -1}}, float[{G}] one = {{1, 1, 1}}, float[{G}] zero = {{0, 0, 0}}> {{ {text} }}"""
    )
    rng = np.random.default_rng(0)
    behind = (C, *[1] * (rank - 2))
    weights = {
        "gain": rng.standard_normal(behind).astype(np.float32),
        "bias": rng.standard_normal((1, *behind)).astype(np.float32),
        "back": np.array([0, C, 5, 4][:rank] if rank == 4 else [0, C, 20]),
        "flat_gain": rng.standard_normal(C).astype(np.float32),
        "flat_bias": rng.standard_normal(C).astype(np.float32),
    }
    for name, values in weights.items():
        if name in text:
            model.graph.initializer.append(numpy_helper.from_array(values, name))
    read = {name for node in model.graph.node for name in node.input}
    for entry in [entry for entry in model.graph.initializer if entry.name not in read]:
        model.graph.initializer.remove(entry)
    model.metadata_props.add(key="ddpm-rt", value="{}")
    onnx.checker.check_model(model, full_check=True)
    return model


LONG = """g = Reshape(x, groups) n = InstanceNormalization<epsilon=0.25>(g, one, zero) b = Reshape(n, back)
    s = Mul(b, gain) y = Add(bias, s)"""
SHORT = f"y = GroupNormalization<num_groups={G}, epsilon=0.25>(x, flat_gain, flat_bias)"


def run(model: onnx.ModelProto) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    shape = [2, *session.get_inputs()[0].shape[1:]]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    y: np.ndarray = session.run(None, {"x": x})[0]
    return y


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("opset", [18, 21, 22])
def test_five_nodes_become_one(opset: int, rank: int) -> None:
    model = network(opset, LONG, rank)
    before = model.SerializeToString()
    found, num = write_group_norm(model, "group")
    assert num == 1
    assert kinds(found) == ["GroupNormalization"]
    assert len(found.graph.initializer) == 2
    assert max(opset, 21) == found.opset_import[0].version
    assert [entry.key for entry in found.metadata_props] == ["ddpm-rt"]
    np.testing.assert_allclose(run(found), run(model), rtol=0, atol=2e-6)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("rank", [3, 4])
def test_one_node_becomes_five_and_one_again(rank: int) -> None:
    model = network(21, SHORT, rank)
    long, num = write_group_norm(model, "instance")
    assert num == 1
    assert kinds(long) == ["Reshape", "InstanceNormalization", "Reshape", "Mul", "Add"]
    np.testing.assert_allclose(run(long), run(model), rtol=0, atol=2e-6)
    short, _ = write_group_norm(long, "group")
    assert kinds(short) == ["GroupNormalization"]
    np.testing.assert_array_equal(run(short), run(model))


@pytest.mark.parametrize(
    "text",
    [
        LONG.replace("(g, one, zero)", "(g, one, one)"),
        LONG.replace("(g, one, zero)", "(g, zero, zero)"),
        LONG.replace("y = Add(bias, s)", "a = Add(bias, s) y = Add(a, b)"),
        LONG.replace("Add(bias, s)", "Mul(bias, s)"),
        LONG.replace("Mul(b, gain)", "Mul(b, b)"),
    ],
)
def test_what_is_none_stays(text: str) -> None:
    model = network(21, text)
    found, num = write_group_norm(model, "group")
    assert num == 0
    assert kinds(found) == kinds(model)


def test_gains_by_column_are_not_by_channel() -> None:
    """[W, 1] behind [N, C, H, W] scales rows, though it has as many numbers as there are channels."""
    model = network(21, LONG)
    for entry in model.graph.initializer:
        if entry.name == "gain":
            entry.CopyFrom(numpy_helper.from_array(np.full((1, 1, 1), 2.0, np.float32), "gain"))
    found, num = write_group_norm(model, "group")
    assert num == 0
    np.testing.assert_array_equal(run(found), run(model))


def test_an_opset_that_is_too_new() -> None:
    model = network(21, LONG)
    model.opset_import[0].version = 23
    with pytest.raises(InputError, match="has opset 23, expected at most 22"):
        write_group_norm(model, "group")


def test_computed_weights_cannot_be_taken_apart() -> None:
    model = network(21, "twice = Add(flat_gain, flat_gain) " + SHORT.replace("flat_gain,", "twice,"))
    with pytest.raises(InputError, match="has computed weights or an open size"):
        write_group_norm(model, "instance")


INSTANCES = """<ir_version: 9, opset_import: ["" : 18]> network (float[N, 6, 4, 5] x) => (float[N, 6, 8, 10] y)
<int64[3] groups = {0, 3, -1}, int64[4] back = {0, 6, 4, 5}, float[3] one = {1, 1, 1}, float[3] zero = {0, 0, 0},
 float[3] gain = {1, 2, 1}, float[4] scales = {1, 1, 2, 2}> {
    a = Reshape(x, groups) b = InstanceNormalization<epsilon=0.25>(a, one, zero)
    c = InstanceNormalization<epsilon=0.5>(b, gain, zero) d = InstanceNormalization(c, one, zero)
    e = Reshape(d, back) y = Resize<mode="nearest">(e, , scales)
}"""


def predict(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y: np.ndarray = session.run(None, {"x": x})[0]
    return y


def test_a_network_and_its_other_form() -> None:
    model = onnx.parser.parse_model(INSTANCES)
    before = model.SerializeToString()
    rewritten, no_kernel = in_cuda_bf16_form(model)
    assert model.SerializeToString() == before
    kinds = ["Reshape", "LayerNormalization", "InstanceNormalization", "LayerNormalization", "Reshape", "Resize"]
    assert [node.op_type for node in rewritten.graph.node] == kinds
    # An instance normalization with gains of its own is no layer normalization; it and Resize stay in float32.
    assert no_kernel == ("InstanceNormalization_2", "Resize_5")
    weights = {entry.name: numpy_helper.to_array(entry) for entry in rewritten.graph.initializer}
    assert set(weights) == {"groups", "back", "zero", "gain", "scales", "ones_40"}
    np.testing.assert_array_equal(weights["ones_40"], np.ones(40, np.float32))
    x = 3 * np.random.default_rng(0).standard_normal((2, 6, 4, 5)).astype(np.float32) + 1
    np.testing.assert_allclose(predict(rewritten, x), predict(model, x), rtol=1e-4, atol=1e-5)
