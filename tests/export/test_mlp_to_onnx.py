"""Small networks in ONNX: the contract, the metadata, and that a wrong file is never published."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from diffusion.binomial import BinomialProcess, constant_erasure
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import METADATA_KEY, Process, SampleShape
from export.mlp_to_onnx import export_mlp, main
from runtime.sample_bits import BinomialNetwork, sample_bits
from runtime.sampler import Sampler
from train.mlp import Mlp, MlpConfig, TrainedMlp, make_network, read_mlp, write_mlp

PROCESSES = {
    "gaussian": Process(SampleShape(2, 1, 1), NoiseSchedule.make("linear", 30), clip_sample=None),
    "binomial": BinomialProcess(SampleShape(1, 1, 20, levels=2), constant_erasure(30)),
}
CONFIG = MlpConfig(16, 2)


@pytest.fixture(scope="module", params=PROCESSES)
def exported(request, tmp_path_factory):
    """(folder of the network, its ONNX file): one export of each kind for all tests."""
    process, place = PROCESSES[request.param], tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    write_mlp(place / "run", make_network(CONFIG, process), CONFIG, process, {})
    return place / "run", place / "run.onnx", dict(export_mlp(place / "run", place / "run.onnx").report)


def test_the_file_keeps_the_contract(exported):
    folder, out, report = exported
    trained = read_mlp(folder)
    assert report["process"] == trained.process.to_json()
    assert report["verification"]["worst_relative_error"] < 1e-5
    model = onnx.load(out)
    assert json.loads({p.key: p.value for p in model.metadata_props}[METADATA_KEY]) == trained.process.to_json()
    session = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    inputs = {entry.name: entry for entry in session.get_inputs()}
    assert inputs["x"].shape == ["N", *trained.process.sample.chw]
    assert inputs["t"].shape == ["N"]
    assert {entry.type for entry in (*inputs.values(), *session.get_outputs())} == {"tensor(float)"}
    x = np.random.default_rng(0).standard_normal((7, *trained.process.sample.chw), dtype=np.float32)
    t = np.arange(7, dtype=np.float32)
    np.testing.assert_allclose(session.run(["prediction"], {"x": x, "t": t})[0], trained.predict(x, t), atol=1e-5)


def test_the_same_network_gives_the_same_bytes_at_another_place(exported, tmp_path, monkeypatch, capsys):
    folder, out, _ = exported
    monkeypatch.chdir(tmp_path)
    assert main(["--checkpoint", str(folder), "--json"]) == 0  # run.onnx, named after the folder
    assert json.loads(capsys.readouterr().out)["onnx"] == "run.onnx"
    assert (tmp_path / "run.onnx").read_bytes() == out.read_bytes()
    assert str(folder.parent).encode() not in out.read_bytes()


def test_a_network_that_differs_from_pytorch_is_not_published(tmp_path, monkeypatch, capsys):
    write_mlp(tmp_path / "run", Mlp(CONFIG, (2, 1, 1)), CONFIG, PROCESSES["gaussian"], {})
    right = TrainedMlp.predict
    monkeypatch.setattr(TrainedMlp, "predict", lambda self, x, t: right(self, x, t) * np.float32(1.001))
    assert main(["--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "network.onnx")]) == 3
    assert "differs from PyTorch" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_runtime_takes_the_gaussian_one_and_refuses_the_binomial(exported):
    folder, out, report = exported
    if isinstance(read_mlp(folder).process, Process):
        x = Sampler(out, num_steps=5).sample_float32(3, seed=1)
        assert x.shape == (3, 2, 1, 1)
        assert f"next: python -m runtime.sample --format npy --engine {out}" in report["summary"]
    else:
        with pytest.raises(ValueError, match="describes a binomial process"):
            Sampler(out)
        assert f"next: python -m runtime.sample_bits --engine {out}" in report["summary"]
        x = sample_bits(BinomialNetwork(out), 3, seed=1)
        assert x.shape == (3, 1, 1, 20)


def test_mistakes_are_one_line(tmp_path, capsys):
    for arguments, message in (
        (["--checkpoint", str(tmp_path / "nothing")], "mlp.json: no such file"),
        (["--out", str(tmp_path / "network.bin")], "expected '.onnx'"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
