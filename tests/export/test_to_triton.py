"""`export.to_triton` writes a repository that Triton reads, or says in one line why not."""

import json
import re

import onnx
import pytest
from onnx import TensorProto, helper

from diffusion.conditions import Condition
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from export import to_triton
from export.to_triton import TritonRequest, export_triton, main
from export.triton_config import network_config, tensors_of
from runtime.formats.tensor_spec import NetworkTensors, TensorSpec, condition_specs
from runtime.serve.slots import Slots
from tests.gaussian import GaussianNetwork


@pytest.fixture
def engine(tmp_path):
    process = Process(SampleShape(3, 4, 8), NoiseSchedule.make("linear"))
    return GaussianNetwork(process, 0.0, 0.5).save_onnx(tmp_path / "unet.onnx")


def test_a_repository_is_written_and_written_again(engine, tmp_path, capsys):
    out = tmp_path / "models"
    for slots in ("2", "5"):
        flags = ["--engine", str(engine), "--out", str(out), "--name", "digits", "--slots", slots, "--json"]
        assert main(flags) == 0
        report = json.loads(capsys.readouterr().out)
        assert report == {"repository": str(out), "models": ["digits", "digits_network"]}
        config = (out / "digits" / "config.pbtxt").read_text()
        assert f'key: "slots" value {{ string_value: "{slots}" }}' in config
    assert 'name: "IMAGES" data_type: TYPE_UINT8 dims: [ -1, 4, 8, 3 ]' in config
    assert "decoupled: true" in config
    assert (out / "digits" / "1" / "unet.onnx").read_bytes() == engine.read_bytes()
    network = (out / "digits_network" / "config.pbtxt").read_text()
    assert 'name: "x" data_type: TYPE_FP32 dims: [ 3, 4, 8 ]' in network
    assert 'name: "t" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] }' in network
    assert re.search(r"^max_batch_size: 64$", network, re.MULTILINE)
    assert (out / "digits_network" / "1" / "model.onnx").read_bytes() == engine.read_bytes()


def tensors(t=("N",), batch="N", kind="float32", conditions=()):
    return NetworkTensors(
        TensorSpec("x", kind, (batch, 1, 8, 8)),
        TensorSpec("t", "int64", t),
        TensorSpec("prediction", kind, (batch, 1, 8, 8)),
        condition_specs(conditions, batch),
    )


@pytest.mark.parametrize(
    ("given", "batches", "lines"),
    [
        (
            tensors(kind="bfloat16"),
            (1, 16),
            ["max_batch_size: 16", 'name: "x" data_type: TYPE_BF16 dims: [ 1, 8, 8 ]', "dynamic_batching { }"],
        ),
        (tensors(batch=4, t=(4,)), (4, 4), ["max_batch_size: 0", "dims: [ 4, 1, 8, 8 ]", "TYPE_INT64 dims: [ 4 ]"]),
        (
            tensors(t=()),
            (1, None),
            ["max_batch_size: 0", "dims: [ -1, 1, 8, 8 ]", "dims: [ 1 ] reshape { shape: [ ] }"],
        ),
        (tensors(t=(None, 1)), (1, None), ["max_batch_size: 64", "TYPE_INT64 dims: [ 1 ] }"]),
        (
            tensors(conditions=(Condition("y", "int64", classes=3, null=3),)),
            (1, None),
            ['name: "y" data_type: TYPE_INT64 dims: [ 1 ] reshape { shape: [ ] }'],
        ),
    ],
    ids=["plan", "fixed batch", "one timestep", "column", "class"],
)
def test_the_bare_network_is_described_as_it_is(given, batches, lines):
    config = network_config("net", "tensorrt", "model.plan", given, batches)
    for line in lines:
        assert line in config
    assert ("dynamic_batching" in config) == ("max_batch_size: 0" not in config)


def test_the_tensors_of_a_foreign_file(tmp_path):
    ends = [
        helper.make_tensor_value_info("time", TensorProto.INT64, ["B"]),
        helper.make_tensor_value_info('a "sample"', TensorProto.FLOAT16, ["B", 1, 8, 8]),
        helper.make_tensor_value_info("eps", TensorProto.FLOAT16, ["B", 1, 8, 8]),
    ]
    graph = helper.make_graph([helper.make_node("Identity", ['a "sample"'], ["eps"])], "g", ends[:2], ends[2:])
    onnx.save(helper.make_model(graph), tmp_path / "net.onnx")
    found = tensors_of(tmp_path / "net.onnx")
    assert found.x == TensorSpec('a "sample"', "float16", (None, 1, 8, 8))
    assert found.t == TensorSpec("time", "int64", (None,))
    assert r'name: "a \"sample\"" data_type: TYPE_FP16' in network_config("n", "b", "f", found, (1, None))
    with pytest.raises(InputError, match="x is int8, expected one of float32"):
        network_config("n", "b", "f", tensors(kind="int8"), (1, None))


def test_what_is_in_the_way_is_kept(engine, tmp_path):
    out = tmp_path / "models"
    (out / "other").mkdir(parents=True)
    with pytest.raises(InputError, match="holds 'other', which would be lost"):
        export_triton(TritonRequest(engine, out))
    (out / "other").rename(out / "ddpm")
    (out / "ddpm" / "weights").write_text("mine")
    with pytest.raises(InputError, match="holds a model 'ddpm' that is not ours"):
        export_triton(TritonRequest(engine, out))
    assert (out / "ddpm" / "weights").read_text() == "mine"
    assert [each.name for each in out.iterdir()] == ["ddpm"]


@pytest.mark.parametrize("name", ["other", "ddpm/2", "ddpm_network/labels.txt"])
def test_what_comes_into_the_repository_is_kept(engine, tmp_path, monkeypatch, name):
    """Before, or while the engine is opened, which takes a while."""
    out = tmp_path / "models"
    request = TritonRequest(engine, out)
    export_triton(request)

    def slots(*arguments):
        (out / name).mkdir()
        return Slots(*arguments)

    monkeypatch.setattr(to_triton, "Slots", slots)
    for _ in range(2):
        with pytest.raises(InputError, match=f"holds '{name}', which would be lost"):
            export_triton(request)
        assert (out / name).is_dir()


def test_both_models_have_the_file_that_was_opened(engine, tmp_path, monkeypatch):
    def replaced(*arguments):
        engine.write_bytes(b"another")
        return Slots(*arguments)

    opened = engine.read_bytes()
    monkeypatch.setattr(to_triton, "Slots", replaced)
    export_triton(TritonRequest(engine, tmp_path / "models"))
    for path in ("ddpm/1/unet.onnx", "ddpm_network/1/model.onnx"):
        assert (tmp_path / "models" / path).read_bytes() == opened


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--engine", "none.onnx"], "none.onnx: no such file"),
        (["--engine", "."], "expected an ONNX file, an .xml of OpenVINO or a plan; export a checkpoint first"),
        (["--name", "a/b"], "name is 'a/b', expected letters"),
        (["--slots", "0"], "--slots is 0, expected at least 1"),
        (["--out", "unet.onnx"], "unet.onnx: is a file, expected the name of a folder"),
        (["--deadline", "nan"], "--deadline is nan"),
    ],
)
def test_bad_input(engine, tmp_path, monkeypatch, capsys, flags, says):
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    err = capsys.readouterr().err
    assert says in err.splitlines()[-1]
    assert [each.name for each in tmp_path.iterdir()] == ["unet.onnx"]
