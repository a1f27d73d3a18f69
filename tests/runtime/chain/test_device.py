"""The chain on a device, with the real kernels on a device in software, bit for bit against the chain on the host."""

import itertools
import logging

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.normal import normal_batch
from diffusion.process import Process, SampleShape
from diffusion.samplers import make_table
from runtime.chain.device import DeviceChain
from runtime.chain.device_buffers import chain_layout
from runtime.chain.host import HostChain
from runtime.kernels_module import import_kernels
from tests.runtime.device.host_network import TYPES, HostNetwork, as_float32, rounded
from tests.runtime.device.software_device import DeviceNetwork

SHAPE = SampleShape(2, 3, 6)
SEEDS, INDICES = [5, 2**63 + 1, 7], [100, 2**64 - 1, 3]


def a_process(**changes) -> Process:
    schedule = NoiseSchedule.make("linear", 60)
    return Process(**({"sample": SHAPE, "schedule": schedule, "variance_type": "fixed_large"} | changes))


def table_of(process, sampler="ddpm", num_steps=7):
    return make_table(process, sampler, num_steps)


def host_run(process, table, x_init=None, num_rows=None, **options):
    chain = HostChain(HostNetwork(process, **options), table, len(SEEDS), with_x_start=True)
    chain.begin(SEEDS, INDICES, x_init)
    for _ in range(len(table) if num_rows is None else num_rows):
        chain.step()
    return chain


def assert_same(chain, host):
    for name in ("x", "x_start", "row"):
        np.testing.assert_array_equal(getattr(chain, name), getattr(host, name), err_msg=name)
    np.testing.assert_array_equal(chain.finite(), host.finite())
    assert chain.non_finite() == host.non_finite()


@pytest.mark.parametrize("graph", ["while", "step", "none"])
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m", "unipc"])
def test_it_gives_the_bits_of_the_host_chain(kernels, memory, graph, sampler):
    process = a_process()
    table = table_of(process, sampler)
    assert table.histories == {"ddpm": 0, "dpmpp_2m": 1, "unipc": 2}[sampler]
    chain = DeviceChain(DeviceNetwork(process, memory=memory), table, 3, with_x_start=True, graph=graph)
    assert (chain.graph, chain.fall_backs) == (graph, [])
    for _ in range(2):  # the second time over the junk of the first
        chain.begin(SEEDS, INDICES)
        chain.run()
        assert_same(chain, host_run(process, table))
    assert kernels.state("open_ranges") == 0


def test_slots_that_never_had_a_sample_are_idle(kernels, memory):
    process = a_process()
    table = table_of(process)
    chain, host = (
        DeviceChain(DeviceNetwork(process, memory=memory), table, 3),
        HostChain(HostNetwork(process), table, 3),
    )
    for each in (chain, host):
        each.begin(SEEDS[:1], INDICES[:1], slots=[1])
        each.run()
    np.testing.assert_array_equal(chain.row, host.row)
    np.testing.assert_array_equal(chain.x, host.x)
    assert chain.row.tolist()[::2] == [-1, -1]
    assert not chain.x[::2].any()


def test_a_learned_variance_and_whole_timesteps(kernels, memory):
    process = a_process(variance_type="learned_range")
    table = table_of(process)
    chain = DeviceChain(DeviceNetwork(process, t_type="int64", memory=memory), table, 3, with_x_start=True)
    chain.begin(SEEDS, INDICES)
    chain.run()
    assert_same(chain, host_run(process, table))


@pytest.mark.parametrize("io_type", ["float16", "bfloat16"])
@pytest.mark.parametrize("x_init", [False, True])
def test_a_network_of_another_type_reads_a_rounded_copy_of_x(kernels, memory, io_type, x_init):
    process = a_process()
    table = table_of(process)
    states = np.random.default_rng(0).normal(size=(3, *SHAPE.chw)).astype(np.float32) if x_init else None
    engine = DeviceNetwork(process, memory, io_type)
    chain = DeviceChain(engine, table, 3)
    chain.begin(SEEDS, INDICES, states)
    chain.run()

    # The loop written out with the compiled step.
    x = normal_batch(SHAPE.chw, SEEDS, INDICES, [0] * 3) if states is None else states.copy()
    kind = TYPES[io_type]
    fed, prediction = rounded(x, io_type), np.zeros((3, *SHAPE.chw), kind)
    t, row, flag = np.full(3, table.timesteps[0], np.float32), np.zeros(3, np.int32), np.zeros(3, np.int32)
    step = import_kernels().HostStep(
        table.cast(),
        table.timesteps.astype(np.int32),
        **{"histories": 0, "learned": False, "h2_is_x_start": False, "clip": table.clip},
        **{"x": x, "prediction": prediction, "t": t, "row": row, "flag": flag, "next_input": fed},
        seed=np.array(SEEDS, np.uint64),
        sample_index=np.array(INDICES, np.uint64),
    )
    for _ in range(len(table)):
        prediction[:] = rounded(engine.predict(as_float32(fed, io_type), t), io_type)
        step.run()
    np.testing.assert_array_equal(chain.x, x)
    assert chain.address("next_input")


def test_float32_networks_read_x_itself(kernels, memory):
    process = a_process()
    chain = DeviceChain(DeviceNetwork(process, memory=memory), table_of(process), 3)
    assert chain.address("next_input") == 0
    assert chain.x_start is None


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


def test_a_sample_that_breaks_is_named_and_its_neighbours_are_untouched(kernels, memory):
    process = a_process(clip_sample=1.0)
    table = table_of(process)
    timestep = int(table.timesteps[4])
    chain = DeviceChain(DeviceNetwork(process, memory=memory, break_at=(1, timestep)), table, 3, with_x_start=True)
    chain.begin(SEEDS, INDICES)
    chain.run()
    assert_same(chain, host_run(process, table, break_at=(1, timestep)))
    (broken,) = chain.non_finite()
    assert (broken.sample_index, broken.row, broken.timestep) == (2**64 - 1, 4, timestep)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "deis_3", "unipc"])
@pytest.mark.parametrize("slot", [0, 2])
def test_nothing_of_a_broken_sample_is_left_for_the_next_one(kernels, memory, sampler, slot):
    """Histories that hold NaN, above all: the first row multiplies them by zero."""
    process = a_process()
    table = table_of(process, sampler)
    engine = DeviceNetwork(process, memory=memory, break_at=(slot, int(table.timesteps[4])))
    chain = DeviceChain(engine, table, 3, with_x_start=True)
    chain.begin(SEEDS, INDICES)
    chain.run()
    np.testing.assert_array_equal(chain.finite(), [each != slot for each in range(3)])
    engine.broken = None
    chain.begin(SEEDS, INDICES)
    assert chain.finite().all()
    chain.run()
    assert_same(chain, host_run(process, table))


def test_slots_without_a_sample_stay_idle(kernels, memory):
    process = a_process()
    table = table_of(process)
    chain = DeviceChain(DeviceNetwork(process, memory=memory), table, 5, with_x_start=True)
    chain.begin([1] * 5, range(5))
    chain.run()
    before = chain.x
    chain.begin(SEEDS, INDICES)
    np.testing.assert_array_equal(chain.row, [0, 0, 0, -1, -1])
    chain.run()
    np.testing.assert_array_equal(chain.x[3:], before[3:])
    np.testing.assert_array_equal(chain.row, [7, 7, 7, -1, -1])
    host = host_run(process, table)
    np.testing.assert_array_equal(chain.x[:3], host.x)
    assert chain.finite().all()


def test_samples_of_one_batch_may_stand_at_different_rows(kernels, memory):
    process = a_process()
    table = table_of(process)
    states = np.random.default_rng(1).normal(size=(3, *SHAPE.chw)).astype(np.float32)
    chain = DeviceChain(DeviceNetwork(process, memory=memory), table, 3, with_x_start=True)
    host = HostChain(HostNetwork(process), table, 3, with_x_start=True)
    for each in (chain, host):
        each.begin(SEEDS, INDICES, states)
    rows = np.array([4, -1, 2], np.int32)
    for each in (chain, host):
        each.row = rows
        assert each.rows_left == 5
        each.run()
    assert_same(chain, host)
    np.testing.assert_array_equal(chain.x[1], states[1])


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("slots", [[3], [2, 0], [1, 2, 4]])
def test_samples_begin_in_slots_while_the_others_go_on(kernels, memory, sampler, slots):
    process = a_process()
    table = table_of(process, sampler)
    timestep = int(table.timesteps[2])
    states = np.random.default_rng(1).normal(size=(len(slots), *SHAPE.chw)).astype(np.float32)
    new = ([8, 2**64 - 1, 9][: len(slots)], [1, 2, 2**40][: len(slots)])
    for x_init in (None, states):
        chain = DeviceChain(DeviceNetwork(process, memory=memory, break_at=(2, timestep)), table, 5, with_x_start=True)
        host = HostChain(HostNetwork(process, break_at=(2, timestep)), table, 5, with_x_start=True)
        for each in (chain, host):
            each.begin([*SEEDS, 1, 2], [*INDICES, 4, 5])
            for _ in range(4):
                each.step()
            assert not each.finite()[2]
            each.begin(*new, x_init, slots=slots)
            assert each.rows_left == len(table)
            each.run()
        assert_same(chain, host)


@pytest.mark.parametrize("io_type", ["float16", "bfloat16"])
def test_a_rounded_copy_of_x_is_that_of_every_slot(kernels, memory, io_type):
    process = a_process()
    table = table_of(process)
    chain, alone = (DeviceChain(DeviceNetwork(process, memory, io_type), table, 3) for _ in range(2))
    alone.begin(SEEDS, INDICES)
    alone.run()
    chain.begin(SEEDS[:1], INDICES[:1])
    chain.step()
    chain.begin(SEEDS[1:], INDICES[1:], slots=[1, 2])
    chain.run()
    np.testing.assert_array_equal(chain.x, alone.x)


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


def test_ctrl_c_between_chunks_leaves_a_chain_that_can_begin_again(kernels, memory):
    process = a_process()
    table = table_of(process)
    chain = DeviceChain(DeviceNetwork(process, memory=memory), table, 3, with_x_start=True)

    def interrupt():
        raise KeyboardInterrupt

    chain.begin(SEEDS, INDICES)
    with pytest.raises(KeyboardInterrupt):
        chain.run(interrupt)
    assert chain.rows_left == len(table) - 1
    chain.run()
    assert_same(chain, host_run(process, table))


def test_what_is_taken_is_what_was_planned_and_is_given_back(kernels, memory):
    process = a_process(variance_type="learned_range")
    table = table_of(process)
    engine = DeviceNetwork(process, memory, "float16")
    planned = chain_layout(engine, table, 3, with_x_start=True).size_bytes
    before = memory.free_bytes()
    chain = DeviceChain(engine, table, 3, with_x_start=True)
    assert before - memory.free_bytes() == planned == chain.buffer_bytes
    names = ("x", "prediction", "next_input", "x_start", "t", "coefficients")  # what others read above all
    assert all(chain.address(name) and chain.address(name) % 256 == 0 for name in names)
    chain.close()
    chain.close()
    dropped = DeviceChain(engine, table, 3, with_x_start=True)
    dropped.begin(SEEDS, INDICES)
    dropped.enqueue(2)  # and not waited for
    del dropped
    assert memory.free_bytes() == before
    kernels.assert_nothing_left()
    memory.resize(1000)
    with pytest.raises(InputError, match="device memory: 0.0 MiB are needed and 0.0 MiB are free"):
        DeviceChain(engine, table, 3)


def test_nothing_is_kept_of_a_chain_that_could_not_be_made(kernels, memory):
    process = a_process()
    engine = DeviceNetwork(process, memory=memory)

    def refuse(*_):
        raise InputError("no such batch")

    engine.bind_device = refuse
    before = memory.free_bytes()
    with pytest.raises(InputError, match="no such batch"):
        DeviceChain(engine, table_of(process), 3)
    assert memory.free_bytes() == before
    with pytest.raises(InputError, match="graph is 'fast', expected one of while, step, none"):
        DeviceChain(engine, table_of(process), 3, graph="fast")


def test_impossible_batches(kernels, memory):
    process = a_process()
    chain = DeviceChain(DeviceNetwork(process, memory=memory), table_of(process), 3)
    with pytest.raises(InputError, match="4 samples were given to a chain of 3"):
        chain.begin([0] * 4, range(4))
    with pytest.raises(InputError, match=r"initial states have shape \(2, 2, 3, 6\), expected \(3, 2, 3, 6\)"):
        chain.begin(SEEDS, INDICES, np.zeros((2, *SHAPE.chw), np.float32))
