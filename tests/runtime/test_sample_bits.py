"""`python -m runtime.sample_bits`: the NumPy loop around an ONNX file."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from diffusion.binomial import BinomialProcess, constant_erasure, initial_bits, reverse_loop
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import METADATA_KEY, Process, SampleShape
from runtime import sample_bits
from runtime.sample_bits import BinomialNetwork, main

SHAPE = (1, 2, 6)
PROCESS = BinomialProcess(SampleShape(*SHAPE, levels=2), constant_erasure(12))


def logits(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    return (2.0 * x - 1.0) * (6.0 - 0.5 * t.reshape(-1, 1, 1, 1))


def save_network(path, metadata: dict | None):
    """`logits` as an ONNX file by the contract."""
    numbers = {"two": 2.0, "one": 1.0, "six": 6.0, "half": 0.5}
    weights = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in numbers.items()]
    weights.append(numpy_helper.from_array(np.array([-1, 1, 1, 1]), "per_sample"))
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["doubled"]),
        helper.make_node("Sub", ["doubled", "one"], ["sign"]),
        helper.make_node("Reshape", ["t", "per_sample"], ["t_4d"]),
        helper.make_node("Mul", ["t_4d", "half"], ["halved"]),
        helper.make_node("Sub", ["six", "halved"], ["scale"]),
        helper.make_node("Mul", ["sign", "scale"], ["prediction"]),
    ]
    x, t, prediction = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["N", *SHAPE]), ("t", ["N"]), ("prediction", ["N", *SHAPE]))
    )
    graph = helper.make_graph(nodes, "bits", [x, t], [prediction], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if metadata is not None:
        helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    onnx.save(model, str(path))
    return path


@pytest.fixture
def engine(tmp_path):
    return save_network(tmp_path / "bits.onnx", PROCESS.to_json())


def test_samples_are_those_of_the_loop(engine, tmp_path, capsys):
    out = tmp_path / "bits.npy"
    flags = ["--engine", str(engine), "--num", "9", "--seed", "5", "--start", "70", "--out", str(out)]
    assert main([*flags, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    samples = np.load(out)
    x_T = initial_bits((9, *SHAPE), 5, 70)
    np.testing.assert_array_equal(samples, reverse_loop(PROCESS.schedule, logits, x_T, 5, 70))
    assert samples.dtype == np.uint8
    assert report["fraction_of_ones"] == samples.mean()
    assert not (samples == samples[0]).all()


def test_batches_do_not_matter(engine, monkeypatch):
    network = BinomialNetwork(engine)
    whole = sample_bits.sample_bits(network, 10, seed=1)
    monkeypatch.setattr(sample_bits, "BATCH_SIZE", 4)
    np.testing.assert_array_equal(sample_bits.sample_bits(network, 10, seed=1), whole)


def test_rows_are_printed(engine, tmp_path, capsys):
    assert main(["--engine", str(engine), "--num", "2", "--out", str(tmp_path / "bits.npy")]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    samples = np.load(tmp_path / "bits.npy")
    for text, sample in ((first, samples[0]), (second, samples[1])):
        assert [[".|".index(mark) for mark in line] for line in text.splitlines()[:2]] == sample[0].tolist()


def test_mistakes_are_one_line(engine, tmp_path, capsys):
    gaussian = Process(SampleShape(*SHAPE), NoiseSchedule.make("linear"))
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    save_network(tmp_path / "bare.onnx", None)
    save_network(tmp_path / "gaussian.onnx", gaussian.to_json())
    for flags, message in (
        (["--engine", str(tmp_path / "none.onnx")], "no such file; make one with"),
        (["--engine", str(tmp_path / "junk.onnx")], "cannot be read as an ONNX model"),
        (["--engine", str(tmp_path / "bare.onnx")], "has no metadata ddpm-rt"),
        (["--engine", str(tmp_path / "gaussian.onnx")], "describes no binomial process"),
        (["--engine", str(engine), "--num", "0"], "num is 0"),
        (["--engine", str(engine), "--seed", "-1"], "seed is -1"),
        (["--engine", str(engine), "--out", str(tmp_path / "bits.png")], "expected a name that ends in .npy"),
    ):
        assert main(flags) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_result_that_cannot_be_written_is_said_before_the_work(tmp_path, capsys, monkeypatch):
    path = tmp_path / "heartbeat.onnx"
    save_network(path, PROCESS.to_json())
    (tmp_path / "bits.npy").mkdir()
    monkeypatch.setattr(sample_bits, "sample_bits", lambda *_: pytest.fail("it was sampled"))
    assert main(["--engine", str(path), "--out", str(tmp_path / "bits.npy")]) == 2
    assert "bits.npy: is a folder, expected the name of a file" in capsys.readouterr().err
