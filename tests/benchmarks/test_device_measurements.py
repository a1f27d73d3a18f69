"""What is measured on a GPU, run on the device in software: that what is timed is what is said to be."""

import itertools
from types import SimpleNamespace

import pytest

from benchmarks.device import chain_overhead, step_bandwidth, wall_clock
from benchmarks.device.figures import CACHE_MULTIPLE
from benchmarks.device.findings import Findings
from benchmarks.device.gpu_machine import EAGER_PIPELINE, GRAPH_LOOP, PIPELINE
from benchmarks.device.timing import StreamTimer
from diffusion.errors import InputError
from diffusion.process import SampleShape
from tests.gpu.software_machine import SoftwareMachine
from tests.runtime.device.software_device import software_device


@pytest.fixture
def machine(request, monkeypatch, tmp_path):
    with software_device(request.node.nodeid, monkeypatch) as kernels:
        yield SoftwareMachine(tmp_path, kernels)


@pytest.fixture
def found():
    return {}


@pytest.fixture
def findings(found):
    return Findings(found.update)


def everything_is_given_back(machine):
    return not any(machine.kernels.state(name) for name in ("allocations", "executables", "events"))


def test_the_gpu_is_busy_before_what_is_timed_so_that_no_launch_is_waited_for(machine, monkeypatch):
    kernels, order = machine.kernels, []
    zero, record = machine.memory.zero, kernels.cuda_event_record
    monkeypatch.setattr(machine.memory, "zero", lambda *given: (order.append("lead"), zero(*given))[1])
    monkeypatch.setattr(
        kernels, "cuda_event_record", lambda *given: (order.append("event"), record(*given))[1], raising=False
    )
    stream = machine.memory.make_stream()
    with StreamTimer(kernels, machine.memory) as timer:
        assert timer.milliseconds(stream, lambda: order.append("work")) >= 0
    machine.memory.free_stream(stream)
    assert order == ["lead", "event", "work", "event"]
    assert everything_is_given_back(machine)


def test_step_bandwidth(machine, findings, found, monkeypatch):
    monkeypatch.setattr(step_bandwidth, "SHAPE", SampleShape(2, 8, 8))
    launched = []
    honest = machine.kernels.CudaStep

    def counted_step(**arguments):
        step = honest(**arguments)
        return SimpleNamespace(launch=lambda stream: (launched.append(stream), step.launch(stream)))

    monkeypatch.setattr(machine.kernels, "CudaStep", counted_step, raising=False)
    step_bandwidth.run(machine, findings)
    assert findings.failed_checks == []
    cases = found["figures"]["cases"]
    l2_bytes = machine.kernels.cuda_device_facts(0)["l2_bytes"]
    assert [case["bytes_per_element"] for case in cases if "float16" in case["name"]][:5] == [12, 12, 20, 20, 28]
    assert [case["histories"] for case in cases[:5]] == [0, 0, 1, 1, 2]
    assert [case["noise"] for case in cases[:5]] == [True, False, True, False, False]
    assert all(case["working_set_bytes"] >= CACHE_MULTIPLE * l2_bytes for case in cases)
    for case in cases:
        moved = case["num_samples"] * case["num_elements"] * case["bytes_per_element"]
        assert case["gb_per_s"] == pytest.approx(moved / case["step_ms"] / 1e6)
        assert case["share"] == pytest.approx(case["gb_per_s"] / case["copy"]["gb_per_s"])
    assert len(found["targets"]) == 3
    rounds = step_bandwidth.ROUNDS + step_bandwidth._WARM_UP_ROUNDS
    assert len(launched) == len(cases) * rounds * step_bandwidth.LAUNCHES
    assert everything_is_given_back(machine)


def test_chain_overhead_measures_the_network_alone_and_every_way_to_launch(machine, findings, found, monkeypatch):
    monkeypatch.setattr(chain_overhead, "_SECONDS_PER_BATCH", 0.0)  # three rounds
    monkeypatch.setattr(chain_overhead, "NUM_STEPS", 9)
    runs = []
    honest = chain_overhead.DeviceChain.enqueue

    def enqueue(chain, num_rows):
        runs.append(chain.graph)
        honest(chain, num_rows)

    monkeypatch.setattr(chain_overhead.DeviceChain, "enqueue", enqueue)
    chain_overhead.run(machine, findings, batch_sizes=(1, 8))
    entries = found["figures"]["batches"]
    assert [entry["batch_size"] for entry in entries] == [1, 8]
    for entry in entries:
        for kind in ("while", "step", "none"):
            assert entry[kind]["used"] == kind
            assert entry[kind]["ratio_min"] <= entry[kind]["ratio"] <= entry[kind]["ratio_max"]
        assert entry["nodes"] == {"memcpy": entry["batch_size"]}  # the echo network's
    assert [target["name"] for target in found["targets"]] == [
        "chain over network at batch 1, µs a step",
        "chain / network at batch 8",
    ]
    for target, entry, key in zip(found["targets"], entries, ("us_per_step", "ratio"), strict=True):
        faster = min(entry["while"], entry["step"], key=lambda one: one["chain_ms_per_step"])
        assert target["value"] == faster[key]
    others = len(chain_overhead.OTHER_TURNS)
    assert runs[: 3 + others] == ["while", "step", "none", *["while"] * others]
    assert len(runs) == (2 * 3 + others) * (2 + 3)  # to warm up, to see how long it takes, three rounds
    assert "while, 16 rows a turn" in entries[0]
    assert "while, 16 rows a turn" not in entries[1]
    assert found["figures"]["lines"][-1].split()[-1] == "8"  # nodes
    assert everything_is_given_back(machine)


def test_a_batch_that_does_not_fit_is_left_out(machine, findings, found, monkeypatch):
    machine.memory.resize(400_000)
    monkeypatch.setattr(chain_overhead, "_SECONDS_PER_BATCH", 0.0)
    chain_overhead.run(machine, findings, batch_sizes=(1, 256), precision="fp32")
    fits, too_large = found["figures"]["batches"]
    assert "while" in fits
    assert too_large["left_out"].startswith("device memory: ")
    assert everything_is_given_back(machine)


def test_full_chain(machine, findings, found):
    wall_clock.run_full_chain(machine, findings, cases=(("fp32", 2),))
    assert findings.failed_checks == []
    (entry,) = found["figures"]["chains"]
    assert (entry["steps"], entry["batch_size"]) == (1000, 2)
    assert entry["graph"] in ("while", "step")
    assert entry["images_per_second"] == pytest.approx(2 / entry["seconds"])


@pytest.fixture
def quick(monkeypatch):
    """Three rounds each; in what order the two sides ran."""
    order = []
    monkeypatch.setattr(wall_clock, "_SECONDS_PER_PEER", 0.0)
    honest = wall_clock.ChainSampler.__call__
    monkeypatch.setattr(wall_clock.ChainSampler, "__call__", lambda self: (order.append("ours"), honest(self)))
    return order


def test_eager_peers_are_timed_by_turns_with_ours(machine, findings, found, quick):
    machine.peers = lambda *_: {EAGER_PIPELINE: lambda: lambda: quick.append("theirs")}
    wall_clock.run_eager(machine, findings, cases=(("fp32", 2),))
    (entry,) = found["figures"]["comparisons"]
    assert set(entry["results"]) == {EAGER_PIPELINE, wall_clock.OURS}
    assert (entry["rounds"], entry["nodes"]) == (3, {"memcpy": 2})
    assert quick == ["theirs", "theirs", "ours", "ours"] + ["theirs", "ours"] * 3
    ours, theirs = (entry["results"][name]["ms_per_step"] for name in (wall_clock.OURS, EAGER_PIPELINE))
    assert entry["us_saved_per_step"] == pytest.approx(1e3 * (theirs - ours))
    assert found["targets"] == []
    assert everything_is_given_back(machine)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_compiled_peers_have_goals_at_batch_1_and_one_that_breaks_is_left_out(
    machine, findings, found, quick, batch_size
):
    def breaks():
        raise RuntimeError("the compiler gave up")

    machine.peers = lambda *_: {PIPELINE: breaks, GRAPH_LOOP: lambda: lambda: None}
    wall_clock.run_compiled(machine, findings, batch_size)
    broken, loop = found["figures"]["comparisons"]
    assert broken["left_out"] == "RuntimeError: the compiler gave up"
    assert loop["peer"] == GRAPH_LOOP
    assert [target["name"] for target in found["targets"]] == ([f"{GRAPH_LOOP} / ours"] if batch_size == 1 else [])
    assert findings.failed_checks == []
    assert found["figures"]["prediction_error"] < wall_clock.TOLERANCES["bf16"]


def test_nothing_is_timed_that_is_wrong(machine, findings, found, quick):
    machine.reference = lambda: lambda x, t: 1.1 * x
    wall_clock.run_compiled(machine, findings, 2)
    assert findings.failed_checks == ["compiled predictions within 0.05 of the CPU's"]
    assert "comparisons" not in found["figures"]
    assert quick == []


def test_a_batch_that_does_not_fit_is_an_input_error(machine):
    machine.memory.resize(1000)
    with pytest.raises(InputError, match="device memory"):
        wall_clock.ChainSampler(machine.engine("fp32"), 4)


def test_every_line_is_printed_as_it_is(findings, found):
    for line in itertools.chain("ab", "c"):
        findings.add("lines", line)
    assert found["figures"]["lines"] == ["a", "b", "c"]
