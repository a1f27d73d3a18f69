"""The measurement of runs in shards measures what it says."""

import json
from pathlib import Path

import pytest

from benchmarks import scale
from diffusion.errors import InputError
from tests.runtime.gaussian_folder import NETWORK


def test_a_run_whose_shards_are_all_done_is_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setattr(scale, "_SHARDS", 3)
    monkeypatch.setattr(scale, "_SHARD_SIZE", 100)
    NETWORK.save_onnx(tmp_path / "unet.onnx")
    arguments = ["--parts", "resume", "--rounds", "1", "--out", "scale.json"]
    assert scale.main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(Path("scale.json").read_text())
    assert report["resume"]["rounds"] == 1
    assert 0.0 < report["resume"]["cpu_seconds"] < 300.0
    assert {path.name for path in tmp_path.iterdir()} == {"unet.onnx", "scale.json"}


def test_a_command_that_fails_is_no_figure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="ended with 2"):
        scale.sample("--engine", "none.onnx")
