"""The samples of one batch on a device: broken, idle, at different rows, each untouched by its neighbours."""

import numpy as np
import pytest

from runtime.chain.device import DeviceChain
from runtime.chain.host import HostChain
from tests.runtime.chain.host_reference import INDICES, SEEDS, SHAPE, a_process, assert_same, host_run, table_of
from tests.runtime.device.host_network import HostNetwork
from tests.runtime.device.software_device import DeviceNetwork


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
