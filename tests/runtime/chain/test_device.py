"""The chain on a device, with the real kernels on a device in software, bit for bit against the chain on the host."""

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.normal import normal_batch
from runtime.chain.device import DeviceChain
from runtime.chain.device_buffers import chain_layout
from runtime.kernels_module import import_kernels
from tests.runtime.chain.host_reference import INDICES, SEEDS, SHAPE, a_process, assert_same, host_run, table_of
from tests.runtime.device.host_network import TYPES, as_float32, rounded
from tests.runtime.device.software_device import DeviceNetwork


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
