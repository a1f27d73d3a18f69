"""`benchmarks.serve` says what it measured, and its clock of rows is right where queues are known."""

import json

import numpy as np
import pytest

from benchmarks.serve.__main__ import largest_rate, main, p95_on_rows
from benchmarks.serve.arrivals import InstantEngine, RowClock, latencies
from benchmarks.serve.policies import POLICIES
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.serve.image_request import ImageRequest
from tests.gaussian import GaussianNetwork


def taken(policy, arrivals, num_slots=2):
    clock = RowClock()
    engine = InstantEngine(clock)
    slots = POLICIES[policy](engine, num_slots, threads=1, clock=clock)
    requests = [(when, ImageRequest(steps=steps, sampler="ddim")) for when, steps in arrivals]
    return latencies(slots, engine, requests, clock).tolist()


def test_what_each_policy_makes_of_a_few_requests():
    arrivals = [(0.0, 20), (0.5, 100), (1.0, 20), (2.0, 20)]
    # 20 rows alone; then a slot is free for those that wait, one after the other.
    assert taken("slots", arrivals) == [20.0, 100.5, 39.0, 58.0]
    # The first alone; the second and the third together, until the longer one ends; then the fourth.
    assert taken("static", arrivals) == [20.0, 119.5, 39.0, 138.0]
    # The first alone; the second alone, as it came first; then those of 20 steps.
    assert taken("static, one table", arrivals) == [20.0, 119.5, 139.0, 138.0]


def test_a_request_that_finds_a_free_slot_takes_its_own_steps():
    assert p95_on_rows("slots", 1e-4, 4, [20], 50) == pytest.approx(20)


def test_slots_serve_more_within_a_limit():
    found = {policy: largest_rate(policy, 200.0, 8, [20, 100], 150) for policy in POLICIES}
    assert found["slots"] > 1.5 * max(found["static"], found["static, one table"])


def test_report(tmp_path, capsys):
    process = Process(SampleShape(1, 8, 8), NoiseSchedule.make("linear"))
    engine = GaussianNetwork(process, 0.0, 0.5).save_onnx(tmp_path / "unet.onnx")
    out = tmp_path / "serve.json"
    few = ["--requests", "10", "--rounds", "2", "--wall-requests", "5", "--wall-rounds", "1", "--steps", "2", "5"]
    assert main(["--engine", str(engine), *few, "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == report
    assert [each["p95_limit_rows"] for each in report["rates"]] == [7.5, 10.0, 15.0, 25.0]
    assert report["overhead"]["slots_cpu_ms_per_step"] > 0
    assert [each["policy"] for each in report["wall"]] == list(POLICIES)
    assert all(np.isfinite(each["p95_s"]) for each in report["wall"])
