"""How a chunk of rows is launched on a device: as a loop, row by row or without a graph; and how long a chunk is."""

import itertools
import logging

import numpy as np
import pytest

from runtime.chain.device import DeviceChain
from tests.runtime.chain.host_reference import INDICES, SEEDS, a_process, assert_same, host_run, table_of
from tests.runtime.device.software_device import DeviceNetwork


def test_a_loop_runs_a_chunk_in_one_launch_and_the_others_one_row_each(kernels, memory):
    process = a_process()
    table = table_of(process)
    expected = host_run(process, table, num_rows=5)
    for graph, rows, launches in (("while", 1, 2), ("while", 2, 3), ("while", 8, 5), ("step", 1, 5), ("none", 1, 0)):
        engine = DeviceNetwork(process, memory=memory)
        chain = DeviceChain(engine, table, 3, with_x_start=True, graph=graph, rows_per_turn=rows)
        launched, before = kernels.state("cudaGraphLaunch"), engine.enqueued
        chain.begin(SEEDS, INDICES)
        chain.enqueue(2)
        chain.enqueue(3)  # behind the first chunk, without waiting for it
        assert chain.rows_left == 2
        chain.wait()
        assert kernels.state("cudaGraphLaunch") - launched == launches
        assert engine.enqueued - before == (5 if graph == "none" else 0)
        assert_same(chain, expected)
    assert kernels.software_ranges()[:2] == ["2 rows of 3 samples", "3 rows of 3 samples"]


@pytest.mark.parametrize(
    ("wanted", "captures", "refuses", "graph", "says"),
    [
        ("while", "host nodes", {}, "step", "holds 2 × host; one graph launch for each row"),
        ("while", True, {"cudaGraphAddNode": 0}, "step", "cudaGraphAddNode failed: operation not supported"),
        ("while", True, {"cudaGraphConditionalHandleCreate": 0}, "step", "(cudaErrorNotSupported); one graph launch"),
        ("while", True, {"cudaGraphAddKernelNode": 0}, "none", "the step to a graph failed: operation not supported"),
        # The loop of four rows is made, the row for what is left over is not.
        ("while", True, {"cudaGraphAddKernelNode": 4}, "none", "the step to a graph failed: operation not supported"),
        ("while", True, {"cudaGraphAddNode": 0, "cudaGraphAddChildGraphNode": 0}, "none", "ChildGraphNode failed"),
        ("while", True, {"cudaGraphCreate": 1}, "none", "cudaGraphCreate failed: operation not supported"),
        ("while", True, {"cudaGraphInstantiate": 0}, "none", "cudaGraphInstantiate failed"),
        ("while", True, {"cudaGraphUpload": 0}, "none", "cudaGraphUpload failed"),
        ("step", True, {"cudaGraphAddKernelNode": 0}, "none", "launched one by one"),
        ("while", False, {}, "none", "this backend's call cannot be captured"),
        ("while", "fails", {}, "none", "not permitted when stream is capturing"),
        ("step", True, {"cudaStreamEndCapture": 0}, "none", "cudaStreamEndCapture failed"),
        ("step", True, {"cudaStreamBeginCapture": 0}, "none", "cudaStreamBeginCapture failed"),
    ],
)
def test_fall_backs_are_logged_and_change_no_bit(kernels, memory, caplog, wanted, captures, refuses, graph, says):
    process = a_process()
    table = table_of(process)
    engine = DeviceNetwork(process, memory)
    engine.captures = captures
    for name, after in refuses.items():
        kernels.software_refuse(name, after)
    with caplog.at_level(logging.WARNING):
        chain = DeviceChain(engine, table, 3, with_x_start=True, graph=wanted)
    assert chain.graph == graph
    assert any(says in reason for reason in chain.fall_backs)
    assert [record.getMessage() for record in caplog.records] == chain.fall_backs
    chain.begin(SEEDS, INDICES)
    chain.run()
    assert_same(chain, host_run(process, table))
    chain.close()
    assert kernels.state("executables") == 0
    assert kernels.state("graphs") <= 1  # the network's own, which its call keeps


@pytest.mark.parametrize(
    ("loop_ms", "single_ms", "kept"), [(8.0, 7.0, "step"), (8.0, 7.95, "while"), (7.0, 8.0, "while")]
)
def test_a_loop_and_single_rows_are_timed_in_the_first_chunk_and_the_faster_is_kept(
    kernels, memory, monkeypatch, loop_ms, single_ms, kept
):
    process = a_process()
    table = table_of(process, num_steps=50)
    chain = DeviceChain(DeviceNetwork(process, memory), table, 3, with_x_start=True)
    times = itertools.cycle([loop_ms, single_ms])
    honest = kernels.cuda_event_elapsed_ms
    monkeypatch.setattr(kernels, "cuda_event_elapsed_ms", lambda *pair: (honest(*pair), next(times))[1], raising=False)
    launches = kernels.state("cudaGraphLaunch")
    chain.begin(SEEDS, INDICES)
    chain.enqueue(1)
    assert (chain.graph, kernels.state("events")) == ("while", 0)  # too few to tell
    chain.enqueue(37)  # a turn, 8 rows of each kind, twice, and one more
    assert kernels.state("events") == 5
    assert kernels.state("cudaGraphLaunch") - launches == 1 + 1 + 2 * (1 + 8) + 1
    chain.enqueue(1)  # nothing has run yet, so nothing is known yet
    assert (chain.graph, kernels.state("events")) == ("while", 5)
    chain.wait()
    np.testing.assert_array_equal(chain.row, [1 + 37 + 1] * 3)
    launches = kernels.state("cudaGraphLaunch")
    chain.enqueue(8)
    assert (chain.graph, kernels.state("events")) == (kept, 0)
    assert kernels.state("cudaGraphLaunch") - launches == {"step": 8, "while": 1}[kept]
    chain.wait()
    chain.run()
    assert_same(chain, host_run(process, table))
    chain.close()
    assert chain.graph == kept


def test_a_chain_that_is_closed_before_its_times_are_read_gives_its_events_back(kernels, memory):
    process = a_process()
    chain = DeviceChain(DeviceNetwork(process, memory), table_of(process, num_steps=50), 3)
    chain.begin(SEEDS, INDICES)
    chain.enqueue(40)
    chain.close()
    assert kernels.state("events") == 0


def test_chunks_follow_the_time_that_was_measured(kernels, memory, monkeypatch):
    """One row, then a quarter of a second's worth; 0.06 s a row here, and twice that from the second chunk on."""
    process = a_process()
    table = table_of(process, num_steps=20)
    clock = itertools.count()
    chain = DeviceChain(DeviceNetwork(process, memory=memory), table, 3)
    now = 0.0
    sizes = []
    enqueue, wait = chain._launcher.enqueue, memory.synchronize

    def slow_enqueue(num_rows):
        nonlocal now
        sizes.append(num_rows)
        now += num_rows * (0.06 if next(clock) < 1 else 0.12)
        enqueue(num_rows)

    monkeypatch.setattr(chain._launcher, "enqueue", slow_enqueue)
    monkeypatch.setattr("runtime.chain.device.time.perf_counter", lambda: now)
    assert wait is not None
    calls = []
    chain.begin(SEEDS, INDICES)
    chain.run(lambda: calls.append(len(sizes)))
    assert sizes == [1, 5, 3, 3, 3, 3, 2]
    assert calls == [1] + [2] * 5 + [3] * 3 + [4] * 3 + [5] * 3 + [6] * 3 + [7] * 2  # each when its chunk is through
    # The next batch knows from the start, and a chain that is shorter is one chunk.
    sizes.clear()
    chain.seconds_per_row = 1e-5
    chain.begin(SEEDS, INDICES)
    chain.run()
    assert sizes == [20]
