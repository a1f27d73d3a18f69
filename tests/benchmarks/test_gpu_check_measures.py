"""The stages that measure, run on the device in software: that what is timed is what is said to be."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.gpu_check import cifar_network, full_chain, network_bits, step_bandwidth
from benchmarks.gpu_check.chain_bits import SHAPE, a_process
from benchmarks.gpu_check.echo_engine import EchoEngine
from benchmarks.gpu_check.figures import CACHE_MULTIPLE
from diffusion.errors import InputError
from diffusion.process import SampleShape
from diffusion.samplers import make_table
from tests.benchmarks.gpu_check_device import device_context

torch = pytest.importorskip("torch")

from benchmarks.gpu_check import chain_overhead, eager_peers, wall_clock  # noqa: E402


@pytest.fixture
def device(request, monkeypatch, tmp_path):
    yield from device_context(request, monkeypatch, tmp_path)


@pytest.fixture
def echo(device, monkeypatch):
    """The echo network in place of the U-Net, PyTorch without a GPU."""
    context, _ = device
    engine = EchoEngine(a_process(SHAPE), "float32", "int64", context.memory, context.kernels)
    for module in (chain_overhead, network_bits, full_chain, eager_peers):
        monkeypatch.setattr(module, "import_torch", lambda: torch)
        monkeypatch.setattr(module, "device_engine", lambda context, precision: engine)
    return engine


def test_step_bandwidth(device, monkeypatch):
    context, findings = device
    monkeypatch.setattr(step_bandwidth, "SHAPE", SampleShape(2, 8, 8))
    launched = []
    honest = context.kernels.CudaStep

    def counted_step(**arguments):
        step = honest(**arguments)
        return SimpleNamespace(launch=lambda stream: (launched.append(stream), step.launch(stream)))

    monkeypatch.setattr(context.kernels, "CudaStep", counted_step)
    step_bandwidth.run(context)
    assert context.failed_checks == []
    cases = findings["figures"]["cases"]
    l2_bytes = context.kernels.cuda_device_facts(0)["l2_bytes"]
    assert [case["bytes_per_element"] for case in cases if "float16" in case["name"]][:5] == [12, 12, 20, 20, 28]
    assert [case["histories"] for case in cases[:5]] == [0, 0, 1, 1, 2]
    assert [case["noise"] for case in cases[:5]] == [True, False, True, False, False]
    assert all(case["working_set_bytes"] >= CACHE_MULTIPLE * l2_bytes for case in cases)
    for case in cases:
        moved = case["num_samples"] * case["num_elements"] * case["bytes_per_element"]
        assert case["gb_per_s"] == pytest.approx(moved / case["step_ms"] / 1e6)
        assert case["share"] == pytest.approx(case["gb_per_s"] / case["copy"]["gb_per_s"])
    assert len(findings["targets"]) == 3
    rounds = step_bandwidth.ROUNDS + step_bandwidth._WARM_UP_ROUNDS
    assert len(launched) == len(cases) * rounds * step_bandwidth.LAUNCHES
    assert context.kernels.state("allocations") == 0


def test_chain_overhead_measures_the_network_alone_and_every_way_to_launch(device, echo, monkeypatch):
    context, findings = device
    monkeypatch.setattr(chain_overhead, "_SECONDS_PER_BATCH", 0.0)  # three rounds
    runs = []
    honest = chain_overhead.chain_ms

    def chain_ms(chain, batch_size):
        runs.append(chain.graph)
        return honest(chain, batch_size)

    monkeypatch.setattr(chain_overhead, "chain_ms", chain_ms)
    chain_overhead.run(context, batch_sizes=(1, 8))
    entries = findings["figures"]["batches"]
    assert [entry["batch_size"] for entry in entries] == [1, 8]
    for entry in entries:
        for kind in ("while", "step", "none"):
            assert entry[kind]["used"] == kind
            assert entry[kind]["ratio_min"] <= entry[kind]["ratio"] <= entry[kind]["ratio_max"]
        assert entry["nodes"] == {"memcpy": entry["batch_size"]}  # the echo network's
    assert [target["name"] for target in findings["targets"]] == [
        "chain over network at batch 1, µs a step",
        "chain / network at batch 8",
    ]
    others = len(chain_overhead.OTHER_TURNS)
    assert runs[: 3 + others] == ["while", "step", "none", *["while"] * others]
    assert len(runs) == (2 * 3 + others) * (2 + 3)  # to warm up, to see how long it takes, three rounds
    assert "while, 16 rows a turn" in entries[0]
    assert "while, 16 rows a turn" not in entries[1]
    assert context.kernels.state("executables") == 0
    assert context.kernels.state("allocations") == 0


def test_a_batch_that_does_not_fit_is_left_out(device, echo, monkeypatch):
    context, findings = device
    context.memory.resize(200_000)
    monkeypatch.setattr(chain_overhead, "_SECONDS_PER_BATCH", 0.0)
    chain_overhead.run(context, batch_sizes=(1, 256))
    fits, too_large = findings["figures"]["batches"]
    assert "while" in fits
    assert too_large["left_out"].startswith("device memory: ")


def test_launches_of_a_network_that_repeats_itself_must_agree(device, echo):
    context, findings = device
    network_bits.compare_launches(context, echo, "fp32")
    assert context.failed_checks == []
    assert findings["figures"] == {"repeats_fp32": True, "differing_step_fp32": 0, "differing_while_fp32": 0}


def test_a_graph_with_another_result_fails(device, echo, monkeypatch):
    context, _ = device
    honest = context.kernels.cuda_while_graph

    def while_graph(network, step, turns_left, num_rows):
        return honest(network, step, turns_left, num_rows + 1)  # one row too many a turn

    monkeypatch.setattr(context.kernels, "cuda_while_graph", while_graph)
    # The table is longer than what is run, so that the row too many is one.
    monkeypatch.setattr(network_bits, "make_table", lambda process, num_steps: make_table(process, num_steps=20))
    network_bits.compare_launches(context, echo, "fp32")
    assert context.failed_checks == ["fp32: while as without a graph"]


def test_prediction_errors_are_relative_and_see_what_was_not_written(device):
    context, _ = device
    engine = EchoEngine(a_process(SHAPE), "float32", "float32", context.memory, context.kernels)

    assert network_bits.largest_error(engine, lambda x, t: x) == 0.0
    assert network_bits.largest_error(engine, lambda x, t: 2 * x) == pytest.approx(0.5)
    engine.bind = lambda x, t, prediction: lambda: None
    assert network_bits.largest_error(engine, lambda x, t: x) == float("inf")


def test_full_chain(device, echo):
    context, findings = device
    full_chain.run(context, cases=(("fp32", 2),))
    assert context.failed_checks == []
    (entry,) = findings["figures"]["chains"]
    assert (entry["steps"], entry["batch_size"]) == (1000, 2)
    assert entry["graph"] in ("while", "step")
    assert entry["images_per_second"] == pytest.approx(2 / entry["seconds"])


def test_eager_peers_are_timed_by_turns_with_ours(device, echo, monkeypatch):
    context, findings = device
    order = []
    monkeypatch.setattr(eager_peers, "eager_peer", lambda *_: ("theirs", lambda: order.append("theirs")))
    monkeypatch.setattr(eager_peers, "_SECONDS_PER_CASE", 0.0)
    honest = wall_clock.ChainSampler.__call__
    monkeypatch.setattr(wall_clock.ChainSampler, "__call__", lambda self: (order.append("ours"), honest(self)))
    eager_peers.run(context, cases=(("fp32", 2),))
    (entry,) = findings["figures"]["comparisons"]
    assert set(entry["results"]) == {"theirs", eager_peers.OURS}
    assert entry["rounds"] == 3
    assert order == ["theirs", "theirs", "ours", "ours"] + ["theirs", "ours"] * 3
    assert context.kernels.state("allocations") == 0


def test_the_networks_process_is_the_checkpoints():
    from diffusers import DDPMScheduler

    from diffusion.noise_schedule import NoiseSchedule

    config = DDPMScheduler(variance_type="fixed_large").config
    schedule = NoiseSchedule.make(config.beta_schedule, config.num_train_timesteps, config.beta_start, config.beta_end)
    np.testing.assert_array_equal(cifar_network.PROCESS.schedule.betas, schedule.betas)
    assert cifar_network.PROCESS.clip_sample == config.clip_sample_range
    assert cifar_network.PROCESS.variance_type == config.variance_type


def test_a_batch_that_an_engine_does_not_take_is_an_input_error(device, echo):
    context, _ = device
    context.memory.resize(1000)
    with pytest.raises(InputError, match="device memory"):
        wall_clock.ChainSampler(echo, 4)
