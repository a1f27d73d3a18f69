"""Anybody's ONNX file as the exporters read it: the same network in one form, or a line that says why not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from diffusion.errors import InputError
from export import foreign_network as module
from export.foreign_network import prepare, read_network
from export.graph_facts import all_names, subgraphs

SHAPE = (2, 3)
WEIGHTS = np.arange(6, dtype=np.float32).reshape(SHAPE)


def parse(text: str, functions: str = "", imports: str = "", weights: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18{imports}]> network (float[2, 3] x) => (float[2, 3] y)
        <bool yes = {{1}} {weights}> {{ {text} }} {functions}"""
    )


def run(model: onnx.ModelProto) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y: np.ndarray = session.run(None, {"x": np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)})[0]
    return y


def check_same(model: onnx.ModelProto) -> onnx.ModelProto:
    before = model.SerializeToString()
    prepared = prepare(model, "unet.onnx")
    np.testing.assert_array_equal(run(prepared), run(model))
    assert model.SerializeToString() == before
    return prepared


def test_local_functions_are_written_out() -> None:
    model = parse(
        "y = local.Tanh(x)",
        '<domain: "local", opset_import: ["" : 18]> Tanh (a) => (b) { c = Neg(a) b = Exp(c) }',
        ', "local" : 1',
    )
    prepared = check_same(model)
    assert [node.op_type for node in prepared.graph.node] == ["Neg", "Exp"]
    assert not prepared.functions


def test_constants_are_weights() -> None:
    prepared = check_same(
        parse("a = Constant<value_float=2.0>() b = Constant<value_ints=[2,3]>() c = Expand(a, b) y = Mul(x, c)")
    )
    assert [node.op_type for node in prepared.graph.node] == ["Expand", "Mul"]
    assert {entry.name for entry in prepared.graph.initializer} == {"yes", "a", "b"}


def test_weights_are_no_inputs() -> None:
    model = parse("y = Mul(x, w)", weights=", float[1] w = {3}")
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]))
    assert [entry.name for entry in check_same(model).graph.input] == ["x"]


def test_no_name_is_given_twice() -> None:
    branch = "() => (float[2, 3] {0}) {{ c = {1}(a) {0} = Add(c, x) }}"
    model = parse(
        "a = Neg(x) b = If(yes) "
        f"<then_branch = t {branch.format('u', 'Neg')}, else_branch = e {branch.format('u', 'Abs')}> y = Exp(b)"
    )
    graph = check_same(model).graph
    (branches,) = [list(subgraphs(node)) for node in graph.node if node.op_type == "If"]
    made = [name for body in branches for node in body.node for name in node.output]
    assert len(set(made)) == len(made) == 4
    assert all_names(graph) == {"x", "y", "a", "b", "yes", *made}


def test_an_output_that_is_an_input() -> None:
    model = parse("z = Neg(x) y = Neg(z)")
    model.graph.output[0].name = "x"
    prepared = check_same(model)
    assert prepared.graph.node[-1].op_type == "Identity"


def test_notes_of_shapes_are_not_believed() -> None:
    model = parse("a = Neg(x) y = Neg(a)")
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [2, 7]))
    assert not prepare(model, "").graph.value_info


def test_what_onnx_does_not_accept() -> None:
    model = parse("y = Mul(x, x)")
    model.graph.node[0].op_type = "Multiply"
    with pytest.raises(InputError, match=r"unet.onnx: ONNX's own checks refuse it .*Multiply"):
        prepare(model, "unet.onnx")


@pytest.fixture
def external(tmp_path: Path) -> Path:
    model = parse("y = Mul(x, w)")
    model.graph.initializer.append(numpy_helper.from_array(WEIGHTS, "w"))
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(model, folder / "unet.onnx", save_as_external_data=True, location="unet.data", size_threshold=0)
    return folder / "unet.onnx"


def weights(path: Path) -> np.ndarray:
    return numpy_helper.to_array(next(entry for entry in read_network(path).graph.initializer if entry.name == "w"))


def test_external_data_is_read(external: Path) -> None:
    np.testing.assert_array_equal(weights(external), WEIGHTS)


def test_the_cache_of_hugging_face(external: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "main" / "unet"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name, blob in (("unet.onnx", "0a"), ("unet.data", "0b")):
        shutil.copy(external.with_name(name), blobs / blob)
        (snapshot / name).symlink_to(os.path.relpath(blobs / blob, snapshot))
    np.testing.assert_array_equal(weights(snapshot / "unet.onnx"), WEIGHTS)
    (tmp_path / "link.onnx").symlink_to(snapshot / "unet.onnx")
    with pytest.raises(InputError, match="link.onnx: its external data unet.data cannot be read"):
        weights(tmp_path / "link.onnx")


def test_external_data_elsewhere(external: Path, tmp_path: Path) -> None:
    shutil.move(external.with_name("unet.data"), tmp_path / "secret")
    external.with_name("unet.data").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=r"unet.data is a link to .*secret, expected a file in the folder"):
        weights(external)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"location": "../model/unet.data"}, "'../model/unet.data', expected a file in the folder of the model"),
        ({"location": "/etc/passwd"}, "'/etc/passwd', expected a file in the folder"),
        ({"location": ""}, "'', expected a file in the folder"),
        ({"location": "none"}, "its external data none cannot be read"),
        ({"location": "."}, "its external data . is no file"),
        ({"length": "23"}, "23 bytes from 0, expected 24"),
        ({"offset": "8"}, "it ends after 16 of 24 bytes from 8"),
        ({"offset": "-1"}, "24 bytes from -1"),
        ({"offset": "much"}, "does not hold w"),
    ],
)
def test_external_data_that_is_none(external: Path, changes: dict[str, str], says: str) -> None:
    model = onnx.load(external, load_external_data=False)
    (tensor,) = [entry for entry in model.graph.initializer if entry.name == "w"]
    said = {entry.key: entry.value for entry in tensor.external_data} | {"offset": "0", "length": "24"} | changes
    del tensor.external_data[:]
    for key, value in said.items():
        tensor.external_data.add(key=key, value=value)
    external.write_bytes(model.SerializeToString())
    with pytest.raises(InputError) as refusal:
        weights(external)
    assert says in str(refusal.value)


def test_more_than_a_message_holds(external: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = external.stat().st_size
    monkeypatch.setattr(module, "MAX_ONNX_BYTES", small + 23)  # the data alone have 24
    with pytest.raises(InputError, match=r"GB of network and weights, expected at most .*--backend onnxruntime"):
        read_network(external)
    monkeypatch.setattr(module, "MAX_ONNX_BYTES", small - 1)
    with pytest.raises(InputError, match="GB of network and weights"):
        read_network(external)


def test_a_file_of_more_than_two_gibibytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "unet.onnx"
    with path.open("wb") as file:
        file.truncate(2**31 + 2**20)  # sparse
    with pytest.raises(InputError, match="2.1 GB of network and weights, expected at most 2.1 GB"):
        read_network(path)
