"""Class labels and guidance in exported networks: equal to PyTorch, exact at both ends, and nothing else changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from commands.errors import VerificationError
from diffusion.conditions import GUIDANCE, Condition
from diffusion.errors import InputError
from export.fold_time import fold_time
from export.guidance import with_guidance, without_guidance
from export.onnx_check import verify_onnx
from export.request import ExportRequest
from export.source import Source, read_source
from export.to_onnx import export_onnx
from export.to_openvino import export_openvino
from runtime.engines.gate_conditions import gate_conditions
from runtime.engines.opening import open_engine
from runtime.engines.torch_checkpoint import load_checkpoint
from runtime.engines.verification import predict_with, relative_error
from runtime.formats.golden import Golden
from runtime.formats.sidecar import golden_path
from runtime.formats.train_record import TrainRecord
from tests.checkpoints import save_tiny_checkpoint

CLASSES, NULL, T = 3, 3, 40
LABEL = Condition("y", "int64", classes=CLASSES, null=NULL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional checkpoint with a null class and a learned variance."""
    return save(tmp_path_factory.mktemp("guided"), LABEL)


def save(folder: Path, label: Condition) -> Path:
    save_tiny_checkpoint(
        folder, variance_type="learned_range", num_train_timesteps=T, unet={"num_class_embeds": CLASSES + 1}
    )
    process = load_checkpoint(folder).process.without_guidance()
    TrainRecord(replace(process, checkpoint_sha256=None, conditions=(label,))).write(folder)
    return folder


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    return read_source(ExportRequest(Path("unet.onnx"), folder))


@pytest.fixture(scope="module")
def files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """unet.onnx and unet.xml."""
    out = tmp_path_factory.mktemp("files")
    export_onnx(folder, out / "unet.onnx")
    export_openvino(out / "unet.xml", checkpoint=folder)
    return out


def states(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).standard_normal((num, 1, 8, 8), dtype=np.float32)
    return x, np.linspace(T - 1, 0, num).round().astype(np.float32)


def scales(num: int, value: float) -> np.ndarray:
    return np.full(num, value, np.float32)


def run(model: onnx.ModelProto, **arrays: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["prediction"], arrays)[0]
    return found


def test_the_process_says_what_the_network_takes(source: Source) -> None:
    model = source.finished(source.model)
    described = json.loads({entry.key: entry.value for entry in model.metadata_props}["ddpm-rt"])
    assert described["format"] == 2
    assert described["conditions"] == [
        {"name": "y", "type": "int64", "shape": [], "classes": 3, "null": 3},
        {"name": "guidance", "type": "float32", "shape": [], "default": 1.0},
    ]
    assert [entry.name for entry in model.graph.input] == ["x", "t", "y", "guidance"]
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("num", [1, 2, 5])
def test_it_is_the_formula(source: Source, folder: Path, num: int) -> None:
    x, t = states(num)
    y, g = gate_conditions(source.process.conditions, num, 3)
    unet = load_checkpoint(folder).network
    import torch

    with torch.no_grad():
        arrays = [torch.from_numpy(each) for each in (x, t)]
        p_y = unet(*arrays, torch.from_numpy(y)).numpy()
        p_null = unet(*arrays, torch.full((num,), NULL)).numpy()
    expected = p_null + g.reshape(-1, 1, 1, 1) * (p_y - p_null)
    expected[:, 1:] = p_y[:, 1:]  # the variance is the class's
    found = run(source.finished(source.model), x=x, t=t, y=y, guidance=g)
    assert relative_error(found, expected) < 1e-5
    assert relative_error(source.predict(x, t, y, g), expected) < 1e-6


@pytest.mark.parametrize("name", ["unet.onnx", "unet.xml", "checkpoint"])
@pytest.mark.parametrize("num", [1, 2, 5])
def test_both_ends_are_exact_on_the_same_engine(folder: Path, files: Path, name: str, num: int) -> None:
    """Guidance 1 is the conditional network and 0 the unconditional one, every bit of them."""
    options = {"backend": "onnxruntime"} if name == "unet.onnx" else {}
    predict = predict_with(open_engine(folder if name == "checkpoint" else files / name, **options))
    x, t = states(num)
    y, null = np.arange(num) % CLASSES, np.full(num, NULL)
    of_class, of_null = predict(x, t, y, scales(num, 1.0)), predict(x, t, null, scales(num, 1.0))
    assert not np.array_equal(of_class, of_null)
    # Without a class there is nothing to be guided to: whatever the scale, this is the unconditional network.
    for scale in (0.0, 0.7, 2.5, -3.0):
        np.testing.assert_array_equal(predict(x, t, null, scales(num, scale)), of_null)
    np.testing.assert_array_equal(predict(x, t, y, scales(num, 0.0))[:, :1], of_null[:, :1])
    np.testing.assert_array_equal(predict(x, t, y, scales(num, 0.0))[:, 1:], of_class[:, 1:])
    # Close to an end is not the end.
    assert not np.array_equal(predict(x, t, y, scales(num, 1.001))[:, :1], of_class[:, :1])


@pytest.mark.parametrize("num", [1, 2, 5])
def test_guidance_1_is_the_conditional_network_of_the_same_kernels(source: Source, num: int) -> None:
    """The network called away from is the class itself: what guidance 0 then gives is computed as p_y is."""
    x, t = states(num)
    guided = source.finished(source.model)
    for label in range(CLASSES):
        away = tuple(replace(each, null=label) if each.is_label else each for each in source.process.conditions)
        swapped = with_guidance(source.model, replace(source.process, conditions=away))
        y = np.full(num, label)
        conditional = run(swapped, x=x, t=t, y=np.full(num, NULL), guidance=scales(num, 0.0))
        found = run(guided, x=x, t=t, y=y, guidance=scales(num, 1.0))
        np.testing.assert_array_equal(found[:, :1], conditional[:, :1])


def test_guidance_is_taken_off_again_and_only_what_was_put_on(source: Source) -> None:
    guided = source.finished(source.model)
    plain = without_guidance(guided, source.process)
    assert plain is not None
    assert [entry.name for entry in plain.graph.input] == ["x", "t", "y"]
    assert with_guidance(plain, source.process).SerializeToString(deterministic=True) == guided.SerializeToString(
        deterministic=True
    )
    changed = onnx.ModelProto()
    changed.CopyFrom(guided)
    for entry in changed.graph.initializer:
        if entry.name.startswith(f"{GUIDANCE}/one"):
            entry.CopyFrom(onnx.numpy_helper.from_array(np.array(2.0, np.float32), entry.name))
    assert without_guidance(changed, source.process) is None
    assert without_guidance(source.model, source.process) is None


def test_a_guided_file_makes_an_engine_again(files: Path, tmp_path: Path) -> None:
    """As does its checkpoint: the engine's tables are those of the network before guidance."""
    made = export_openvino(tmp_path / "unet.xml", onnx_file=files / "unet.onnx")
    assert made.report["engine"]["time_path"]["folded"]
    x, t = states(5)
    y, g = gate_conditions(open_engine(files / "unet.xml").process.conditions, 5)
    one, other = (predict_with(open_engine(path))(x, t, y, g) for path in (tmp_path / "unet.xml", files / "unet.xml"))
    assert relative_error(one, other) < 1e-5


def test_guidance_is_not_left_out_of_a_file_that_has_it(files: Path) -> None:
    with pytest.raises(InputError, match="guidance is part of this network already, and --no-guidance is for its"):
        read_source(ExportRequest(Path("unet.xml"), onnx=files / "unet.onnx", guidance=False))


def test_somebody_elses_guidance_is_left_as_it_is(files: Path, tmp_path: Path) -> None:
    """Rewrites see 2N samples and prove nothing of them; what cannot be folded is said."""
    model = onnx.load(str(files / "unet.onnx"))
    for node in model.graph.node:
        node.name = f"theirs_{node.name}"
    described = [entry for entry in model.metadata_props if entry.key == "ddpm-rt"]
    del model.metadata_props[:]
    model.metadata_props.extend(described)
    path = tmp_path / "theirs.onnx"
    onnx.save(model, str(path))
    with pytest.raises(InputError, match="expected one row for each; give --no-fold-time"):
        export_openvino(tmp_path / "unet.xml", onnx_file=path)
    assert export_openvino(tmp_path / "unet.xml", onnx_file=path, fold=False).verification.passed


def test_the_time_path_ends_where_the_label_is_added(source: Source) -> None:
    folded, folding = fold_time(source.model, T)
    assert folding.num_gathers == 1  # the embedding; the projections of its sum with the label's stay
    x, t = states(5)
    y = np.array([0, 1, 2, 3, 0])
    np.testing.assert_allclose(run(folded, x=x, t=t.astype(np.int64), y=y), run(source.model, x=x, t=t, y=y), atol=2e-6)


def test_in_low_precision_label_and_guidance_stay_in_float32(folder: Path, tmp_path: Path) -> None:
    made = export_onnx(folder, tmp_path / "unet.onnx", precision="fp16")
    model = onnx.load(str(made.path))
    types = {
        entry.name: entry.type.tensor_type.elem_type
        for entry in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    for node in model.graph.node:
        if node.name.startswith(f"{GUIDANCE}/") and node.op_type in ("Sub", "Mul", "Add", "Where"):
            assert types.get(node.output[0], TensorProto.FLOAT) in (TensorProto.FLOAT, TensorProto.INT64), node.name
    weights = {entry.name: entry for entry in model.graph.initializer}
    label = next(node for node in model.graph.node if node.op_type == "Gather" and node.input[1] == "y_both")
    assert weights[label.input[0]].data_type == TensorProto.FLOAT
    kept = made.report["kept_in_float32"]
    projections = [node.name for node in model.graph.node if "time_emb_proj" in node.name and node.op_type == "Gemm"]
    assert projections
    assert set(projections) <= set(kept)


def test_the_reference_beside_an_engine_has_conditions_of_all_kinds(files: Path) -> None:
    path = golden_path(files / "unet.xml")
    golden = Golden.from_bytes(path.read_bytes(), path, "")
    labels, given = golden.conditions
    assert labels.shape == given.shape == golden.x.shape[:2]
    assert set(np.unique(labels).tolist()) == {0, CLASSES // 2, CLASSES - 1, NULL}
    assert {0.0, 1.0} < set(np.unique(given).tolist())
    assert len(golden.chain_conditions[0]) == len(golden.x_0)
    for rows, columns in golden.batches():
        if len(rows) > 1:
            pairs = set(zip(labels[rows, columns].tolist(), given[rows, columns].tolist(), strict=True))
            assert len(pairs) > 1


@pytest.mark.parametrize("wrong", ["label", "scale", "null"])
def test_what_is_wrong_with_conditions_alone_is_not_published(source: Source, tmp_path: Path, wrong: str) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(source.finished(source.model))
    if wrong == "null":  # away from class 0
        null = next(entry for entry in model.graph.initializer if entry.name == f"{GUIDANCE}/null")
        null.CopyFrom(onnx.numpy_helper.from_array(np.array(0, np.int64), null.name))
    else:  # that of the first sample for all
        name = "y" if wrong == "label" else GUIDANCE
        place = onnx.numpy_helper.from_array(np.array([0], np.int64), "first")
        shape = helper.make_node("Shape", [name], ["how_many"])
        model.graph.initializer.append(place)
        for node in model.graph.node:
            for at, read in enumerate(node.input):
                node.input[at] = "of_first" if read == name else read
        model.graph.node.insert(0, helper.make_node("Expand", ["one_of_them", "how_many"], ["of_first"]))
        model.graph.node.insert(0, helper.make_node("Gather", [name, "first"], ["one_of_them"], axis=0))
        model.graph.node.insert(0, shape)
    onnx.save(model, str(tmp_path / "unet.onnx"))
    with pytest.raises(VerificationError, match="differs from PyTorch"):
        verify_onnx(tmp_path / "unet.onnx", source.process, source.predict)


def test_without_guidance_the_network_takes_a_label_alone(folder: Path, tmp_path: Path) -> None:
    export_onnx(ExportRequest(tmp_path / "unet.onnx", folder, guidance=False))
    engine = open_engine(tmp_path / "unet.onnx", backend="onnxruntime")
    assert [each.name for each in engine.process.conditions] == ["y"]
    x, t = states(2)
    expected = load_checkpoint(folder).predict(x, t, np.array([1, NULL]), scales(2, 1.0))
    assert relative_error(predict_with(engine)(x, t, np.array([1, NULL])), expected) < 1e-5


def test_a_network_without_a_null_class_is_not_guided(tmp_path: Path) -> None:
    save(tmp_path / "model", replace(LABEL, classes=CLASSES + 1, null=None))
    export_onnx(tmp_path / "model", tmp_path / "unet.onnx")
    engine = open_engine(tmp_path / "unet.onnx", backend="onnxruntime")
    assert [each.name for each in engine.process.conditions] == ["y"]
    assert not engine.process.is_guided


def test_a_file_whose_inputs_are_not_its_conditions_is_refused(source: Source, tmp_path: Path) -> None:
    missing = source.model  # says that it is guided, and has no scale
    onnx.save(missing, str(tmp_path / "missing.onnx"))
    with pytest.raises(InputError, match="has the condition guidance, and its inputs are x, t, y; expected guidance"):
        open_engine(tmp_path / "missing.onnx", backend="onnxruntime")
    other = onnx.ModelProto()
    other.CopyFrom(source.finished(source.model))
    process = replace(source.process, conditions=(replace(LABEL), Condition(GUIDANCE, "float32", default=1.0)))
    text = json.dumps(process.to_json()).replace('"name": "y"', '"name": "label"')
    other.metadata_props[0].value = text
    onnx.save(other, str(tmp_path / "other.onnx"))
    with pytest.raises(InputError, match="has the condition label, and its inputs are x, t, y, guidance"):
        open_engine(tmp_path / "other.onnx", backend="onnxruntime")
