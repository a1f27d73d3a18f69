"""`benchmarks.chain` measures both sides and says what it measured."""

import json

from benchmarks.chain import main
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from tests.gaussian import GaussianNetwork


def test_report(tmp_path, capsys):
    process = Process(SampleShape(1, 8, 8), NoiseSchedule.make("linear"))
    engine = GaussianNetwork(process, 0.0, 0.5).save_onnx(tmp_path / "unet.onnx")
    out = tmp_path / "chain.json"
    arguments = ["--engine", str(engine), "--batch-sizes", "1", "2", "--steps", "3", "--rounds", "2", "--out", str(out)]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == report
    assert [entry["batch_size"] for entry in report["results"]] == [1, 2]
    for entry in report["results"]:
        assert entry["ratio_min"] <= entry["ratio"] <= entry["ratio_max"]
        assert entry["network_ms_per_step"] > 0
    assert report["command"].startswith("python -m benchmarks.chain --engine")
    assert report["machine"]["cpu"]
