"""Names, batch and types of a network's ends."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from diffusion.errors import InputError
from export.graph_facts import name_nodes
from export.network_io import fix_batch, set_io_type, tensor_types, with_contract_names

HALF = TensorProto.FLOAT16


def parse(text: str, inputs: str = "float[N, 1, 2, 2] x, float[N] t", output: str = "prediction") -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]> network ({inputs}) => (float[N, 1, 2, 2] {output})
        <int64[4] shape = {{0, 1, 1, 1}}, int64[4] per_sample = {{-1, 1, 1, 1}}> {{ {text} }}"""
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def test_foreign_names_become_ours() -> None:
    model = parse(
        "x = Reshape(timesteps, per_sample) t = Mul(sample, x) noise = Add(t, x)",
        "float[batch, 1, 2, 2] sample, float[b] timesteps",
        "noise",
    )
    before = model.SerializeToString()
    named = with_contract_names(model, "unet.onnx")
    onnx.checker.check_model(named, full_check=True)
    assert [entry.name for entry in (*named.graph.input, *named.graph.output)] == ["x", "t", "prediction"]
    assert {entry.type.tensor_type.shape.dim[0].dim_param for entry in named.graph.input} == {"N"}
    session, other = (ort.InferenceSession(each.SerializeToString()) for each in (named, model))
    x, t = np.full((3, 1, 2, 2), 2.0, np.float32), np.array([1, 2, 3], np.float32)
    np.testing.assert_array_equal(
        session.run(None, {"x": x, "t": t})[0], other.run(None, {"sample": x, "timesteps": t})[0]
    )
    assert model.SerializeToString() == before


def test_a_batch_that_the_file_fixes() -> None:
    model = parse("r = Reshape(t, per_sample) prediction = Mul(x, r)")
    fix_batch(model, 4)
    assert [entry.type.tensor_type.shape.dim[0].dim_value for entry in model.graph.input] == [4, 4]
    with pytest.raises(InputError, match="input x takes batches of 4 only, expected an open first axis"):
        with_contract_names(model, "unet.onnx")


def test_two_outputs() -> None:
    model = parse("r = Reshape(t, per_sample) prediction = Mul(x, r)")
    model.graph.output.append(model.graph.output[0])
    with pytest.raises(InputError, match="has 2 outputs, expected one prediction"):
        with_contract_names(model, "unet.onnx")


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        # As AutoCast leaves it: the casts at the ends go.
        ("h = Cast<to=10>(x) y = Neg(h) prediction = Cast<to=1>(y)", ["Neg"]),
        # What reads x, or makes the prediction, in float32 gets a cast.
        (
            "h = Cast<to=10>(x) n = Neg(h) w = Cast<to=1>(n) prediction = Add(w, x)",
            ["Cast", "Neg", "Cast", "Add", "Cast"],
        ),
        # A prediction that is read inside as well.
        ("h = Cast<to=10>(x) y = Neg(h) z = Abs(y) v = Add(y, z) prediction = Cast<to=1>(v)", ["Neg", "Abs", "Add"]),
    ],
)
def test_ends_in_half_precision(text: str, kinds: list[str]) -> None:
    model = parse(f"{text} unused = Neg(t)")
    reference = ort.InferenceSession(model.SerializeToString())
    set_io_type(model, HALF)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node if node.output[0] != "unused"] == kinds
    types = tensor_types(model)
    assert (types["x"], types["prediction"], types["t"]) == (HALF, HALF, TensorProto.FLOAT)
    x = np.random.default_rng(0).standard_normal((2, 1, 2, 2)).astype(np.float16)
    t = np.zeros(2, np.float32)
    found = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x, "t": t})[0]
    expected = reference.run(None, {"x": x.astype(np.float32), "t": t})[0]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, expected.astype(np.float16))


def test_every_node_has_a_name_of_its_own() -> None:
    model = parse("a = Neg(x) b = Neg(a) c = Neg(b) prediction = Neg(c) unused = Neg(t)")
    model.graph.node[1].name = "Neg_2"
    model.graph.node[3].name = "Neg_2"
    name_nodes(model)
    names = [node.name for node in model.graph.node]
    assert names[1] == "Neg_2"
    assert len(set(names)) == 5
    assert all(names)
