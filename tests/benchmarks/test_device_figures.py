"""The arithmetic of the GPU's figures."""

import math

import pytest

from benchmarks.device.facts import tool_versions
from benchmarks.device.figures import (
    bandwidth_figures,
    gb_per_s,
    median_ratio,
    moved_bytes_per_element,
    overhead,
    resident_bytes_per_element,
    rounds_within,
    samples_beyond_cache,
)
from benchmarks.device.findings import Findings
from benchmarks.device.wall_clock import compare_seconds, comparison_lines


def test_bytes_of_a_step():
    assert [moved_bytes_per_element(histories, "float16") for histories in (0, 1, 2)] == [12, 20, 28]
    assert moved_bytes_per_element(0, "bfloat16") == 12
    assert moved_bytes_per_element(0, "float32") == 12  # x read and written, the prediction read
    assert [resident_bytes_per_element(histories, "float16") for histories in (0, 1, 2)] == [8, 12, 16]
    assert resident_bytes_per_element(2, "float32") == 16


def test_a_working_set_is_beyond_the_cache():
    num = samples_beyond_cache(60_000_000, 3072, 8)
    assert num * 3072 * 8 >= 8 * 60_000_000 > (num - 1) * 3072 * 8
    assert samples_beyond_cache(1, 3072, 8) == 1


def test_bandwidth():
    assert gb_per_s(4.3e9, 1.0) == pytest.approx(4300)
    figures = bandwidth_figures(8_000_000, [2.0, 1.0, 4.0])
    assert figures == {"gb_per_s": 4.0, "gb_per_s_min": 2.0, "gb_per_s_max": 8.0}


def test_overhead_is_taken_pair_by_pair():
    """The GPU slows down to half its clock: the ratio stays, the difference does not."""
    found = overhead([50.0, 100.0, 100.0], [50.5, 101.0, 101.0], 50)
    assert found.ratio == pytest.approx(1.01)
    assert found.us_per_step == pytest.approx(20.0)
    assert found.network_ms_per_step == 2.0
    assert found.chain_ms_per_step == pytest.approx(2.02)
    assert found.ratio_min <= found.ratio <= found.ratio_max


def test_how_many_times_faster():
    assert median_ratio([3.0, 6.0, 8.0], [1.0, 2.0, 4.0]) == 3.0
    results = compare_seconds({"theirs": [0.3, 0.6, 0.8], "ours": [0.1, 0.2, 0.4]}, "ours", batch_size=4, num_steps=50)
    assert results["theirs"]["ours_is_faster"] == pytest.approx(3.0)
    assert results["ours"]["ours_is_faster"] == 1.0
    assert results["ours"]["ms_per_step"] == pytest.approx(4.0)
    assert results["theirs"]["images_per_second"] == pytest.approx(4 / 0.6)
    assert "ours is 3.00x" in comparison_lines(results, 4)[0]


@pytest.mark.parametrize(("seconds", "rounds"), [(0.1, 21), (1.0, 5), (10.0, 3), (0.0, 21), (1.4, 3)])
def test_rounds_are_odd_and_fit_the_budget(seconds, rounds):
    assert rounds_within(seconds, 6.0, 21) == rounds


def test_targets_from_above_and_below():
    found = {}
    findings = Findings(found.update)
    for value, bound, at_least in (
        (0.85, 0.85, True),
        (0.84, 0.85, True),
        (1.02, 1.02, False),
        (math.nan, 1.02, False),
    ):
        findings.target("figure", value, bound, at_least)
    assert [target["met"] for target in found["targets"]] == [True, False, True, False]
    assert found["targets"][-1]["value"] is None


def test_tools_that_are_missing_are_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("benchmarks.device.kernels_build._CUDA_FOLDERS", ())
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert set(tool_versions().values()) == {"not found"}
