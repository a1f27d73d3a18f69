"""The kernels' benchmark checks before it times, and its report says what was measured where."""

import json

import pytest

from benchmarks import kernels
from diffusion.samplers import SAMPLERS
from runtime.kernels_module import import_kernels

SMALL = ["--shape", "2", "3", "5", "5", "--rounds", "3", "--threads", "1"]


def test_report_names_command_machine_commit_and_every_candidate(capsys, tmp_path):
    out = tmp_path / "results" / "kernels.json"
    assert kernels.main([*SMALL, "--json", "--out", str(out)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(out.read_text())
    assert report["command"].startswith("python -m benchmarks.kernels --shape 2 3 5 5")
    assert {"cpu", "cpu_count", "packages", "gpus"} <= report["machine"].keys()
    assert [entry["name"] for entry in report["results"]] == ["torch", *import_kernels().isa_levels()]
    torch_entry, *compiled = report["results"]
    for entry in compiled:
        assert entry["ratio"] == pytest.approx(torch_entry["median_ms"] / entry["median_ms"])
        assert entry["gb_per_s"] == pytest.approx(150 * 12 / entry["median_ms"] / 1e6)
    assert report["ratio"] == report["results"][-1]["ratio"]


def test_a_step_that_differs_from_pytorch_is_not_timed(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "draw_number", lambda timestep: 12345)  # PyTorch is fed with other noise
    assert kernels.main(SMALL) == 3
    assert "the step differs from PyTorch's" in capsys.readouterr().err


def test_more_threads_than_cpus_are_refused(capsys):
    assert kernels.main([*SMALL[:-1], "4096"]) == 2
    assert "--threads is 4096; expected at most" in capsys.readouterr().err


def test_every_sampler_is_compared_with_one_without_histories_and_as_much_noise(capsys):
    assert kernels.main([*SMALL, "--json"]) == 0
    entries = {entry["sampler"]: entry for entry in json.loads(capsys.readouterr().out)["histories"]}
    assert entries.keys() == SAMPLERS.keys()
    assert {name: entry["histories"] for name, entry in entries.items()} == {
        "ddpm": 0, "ddim": 0, "dpmpp_2m": 1, "dpmpp_sde_2m": 1, "deis": 1, "deis_3": 2, "unipc": 2,
    }  # fmt: skip
    assert {name for name, entry in entries.items() if entry["noise"]} == {"ddpm", "dpmpp_sde_2m"}
    for entry in entries.values():
        against = entries[entry["against"]]
        assert (against["histories"], against["noise"]) == (0, entry["noise"])
        assert entry["ratio"] == pytest.approx(entry["median_ms"] / against["median_ms"])
        assert entry["bytes_ratio"] == (12 + 8 * entry["histories"]) / 12
