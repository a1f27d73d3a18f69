"""The sampler on a device: what it gives is what it gives on the host, whatever is in flight."""

import logging

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime import NonFiniteError, Sampler
from runtime.chain.device_buffers import chain_layout
from runtime.chain.plan import device_batch_size, plan_device
from runtime.trajectory import Trajectory
from tests.runtime.device.host_network import HostNetwork
from tests.runtime.device.software_device import DeviceNetwork

PROCESS = Process(SampleShape(1, 3, 4), NoiseSchedule.make("linear", 50), variance_type="fixed_large")


def both(memory, **options):
    """A sampler on the host and one on the device."""
    options = {"num_steps": 6, "batch_size": 3} | options
    return Sampler(HostNetwork(PROCESS), **options), Sampler(DeviceNetwork(PROCESS, memory=memory), **options)


def test_batches_come_in_order_with_the_bits_of_the_host(kernels, memory):
    host, device = both(memory)
    for start in (7, 2**40):
        found = list(device.batches(8, seed=3, start=start))
        expected = list(host.batches(8, seed=3, start=start))
        assert len(found) == 3
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours.sample_indices, theirs.sample_indices)
            np.testing.assert_array_equal(ours.x, theirs.x)
    assert kernels.state("most_streams_at_once") == 2
    # The last batch has two samples and runs in a chain of three: no third chain, no other graph.
    assert device.engine.bound == [3, 3]


def test_states_to_begin_from(kernels, memory):
    host, device = both(memory)
    states = np.random.default_rng(0).normal(size=(7, *PROCESS.sample.chw)).astype(np.float32)
    np.testing.assert_array_equal(
        device.sample_float32(7, seed=3, x_init=states), host.sample_float32(7, seed=3, x_init=states)
    )
    with pytest.raises(InputError, match="initial states have shape"):
        device.sample(2, x_init=states)


def test_steps_are_counted_as_on_the_host(kernels, memory):
    counts = []
    for sampler in both(memory):
        moved = []
        list(sampler.batches(8, after_step=moved.append))
        counts.append(sorted(moved))
    assert counts[0] == counts[1] == [2] * 6 + [3] * 12


@pytest.mark.parametrize("num_states", [2, 3, 7])
@pytest.mark.parametrize("batch_size", [2, 3, 64])
def test_trajectories_are_those_of_the_host(kernels, memory, num_states, batch_size):
    kept = []
    for sampler in both(memory, batch_size=batch_size):
        trajectory = Trajectory(sampler.table, PROCESS.sample, num_states, 12)
        x = [batch.x for batch in sampler.batches(12, seed=1, trajectory=trajectory)]
        kept.append((trajectory.x, trajectory.x_start, np.concatenate(x)))
        assert trajectory.x.all()
    for ours, theirs in zip(*kept, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_samples_that_break_are_reported_and_the_others_given(kernels, memory):
    host, device = both(memory)
    for sampler in (host, device):
        sampler.engine.broken = (1, int(sampler.table.timesteps[2]))
    found, expected = (list(sampler.batches(7, start=10)) for sampler in (device, host))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.non_finite == theirs.non_finite
        np.testing.assert_array_equal(ours.x, theirs.x)
        np.testing.assert_array_equal(ours.sample_indices, theirs.sample_indices)
    assert [sample.sample_index for batch in found for sample in batch.non_finite] == [11, 14]
    with pytest.raises(NonFiniteError, match="sample 11 is not finite from row 2"):
        device.sample(7, start=10)


def test_stopping_on_the_way_leaves_a_sampler_that_works(kernels, memory):
    host, device = both(memory)

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(device.batches(9, after_step=interrupt))
    assert kernels.state("pending") == 0
    batches = device.batches(9)
    next(batches)
    batches.close()
    assert kernels.state("pending") == 0
    np.testing.assert_array_equal(device.sample_float32(9, seed=2), host.sample_float32(9, seed=2))


def test_another_batch_size_is_another_graph_and_the_old_one_is_given_back(kernels, memory):
    sampler = Sampler(DeviceNetwork(PROCESS, memory=memory), num_steps=4)
    sampler.sample(5)
    held = memory.size_bytes - memory.free_bytes()
    assert sampler.engine.bound == [5]
    sampler.sample(5, seed=9)
    assert sampler.engine.bound == [5]
    sampler.sample(2)
    assert sampler.engine.bound == [5, 2]
    assert kernels.state("executables") == 2  # the loop, and the row for what is left over
    assert memory.size_bytes - memory.free_bytes() <= held


def test_one_batch_in_flight_where_two_do_not_fit(kernels, memory, caplog):
    host, _ = both(memory)
    engine = DeviceNetwork(PROCESS, memory)
    table = host.table
    each = chain_layout(engine, table, 3, False).size_bytes
    # By what is known beforehand: 3000 bytes for a call.
    memory.resize(2 * (each + 3000) - 1)
    assert plan_device(engine, table, 9, 3).chains == 1
    memory.resize(2 * (each + 3000))
    assert plan_device(engine, table, 9, 3).chains == 2
    assert plan_device(engine, table, 3, 3).chains == 1
    # By what turns out: the engine knew nothing, and the second chain finds too little.
    memory.resize(2 * each)
    engine = DeviceNetwork(PROCESS, memory)
    engine.call_bytes = lambda batch_size: 0
    bind = engine.bind_device
    taken = []

    def taking(*arguments):
        taken.append(memory.allocate(300))
        return bind(*arguments)

    engine.bind_device = taking
    sampler = Sampler(engine, num_steps=6, batch_size=3)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(sampler.sample_float32(9), host.sample_float32(9))
    assert [record.getMessage()[:34] for record in caplog.records] == ["one batch in flight instead of 2: "]
    assert "beside what the network takes" in sampler.plan(9).summary
    for address in taken:
        memory.free(address)
    caplog.clear()  # the error's traceback holds the chain that could be made


def test_the_plan_is_said_in_one_line(kernels, memory):
    _, device = both(memory)
    assert device.plan(9).summary.startswith(
        "2 chains in flight, each of 3 samples; 0.0 MiB of device memory, 16.0 MiB are free"
    )
    host, _ = both(memory)
    assert not host.plan(9).summary


def test_a_batch_too_large_is_refused_before_it_is_taken(kernels, memory):
    memory.resize(20_000)
    engine = DeviceNetwork(PROCESS, memory)
    with pytest.raises(InputError, match=r"batch size is 64, which needs .* are free: use `batch_size=\d+` or less"):
        Sampler(engine, batch_size=64)
    assert kernels.state("cudaMalloc") == 0


@pytest.mark.parametrize(
    ("batch_range", "num", "wanted", "size"),
    [
        ((1, None), 10, None, 10),
        ((1, None), 1000, None, 256),
        ((1, 8), 1000, None, 8),
        ((4, 4), 2, None, 4),
        ((1, None), 2, 64, 2),
        ((16, 32), 2, 20, 16),
    ],
)
def test_the_batch_is_one_that_the_engine_takes(memory, batch_range, num, wanted, size):
    assert device_batch_size(DeviceNetwork(PROCESS, memory, batch_range=batch_range), num, wanted) == size


@pytest.mark.parametrize(
    ("wanted", "says"), [(9, "takes batches of 4 to 8, found 9"), (2, "takes batches of 4 to 8, found 2")]
)
def test_a_batch_outside_the_engines_range_is_refused(memory, wanted, says):
    with pytest.raises(InputError, match=says):
        Sampler(DeviceNetwork(PROCESS, memory, batch_range=(4, 8)), batch_size=wanted)


def test_a_static_engine_runs_what_is_left_with_idle_slots(kernels, memory):
    host, _ = both(memory)
    device = Sampler(DeviceNetwork(PROCESS, memory=memory, batch_range=(4, 4)), num_steps=6)
    np.testing.assert_array_equal(device.sample_float32(6), host.sample_float32(6))
    assert device.engine.bound == [4, 4]
