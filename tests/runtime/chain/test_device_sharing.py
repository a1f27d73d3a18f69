"""Callers that share a sampler on a device: each gets the host's bits, whoever's batches are on the chains."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from runtime.trajectory import Trajectory
from tests.runtime.chain.test_device_pool import PROCESS, both

THREADS = 8


def in_threads(work) -> list:
    barrier = threading.Barrier(THREADS)

    def begin(argument):
        barrier.wait(timeout=60)
        return work(argument)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS), timeout=120))


@pytest.mark.parametrize("num", [3, 8])
def test_threads_share_a_sampler(kernels, memory, num):
    host, device = both(memory, num_steps=20)
    expected = [host.sample_float32(num, seed=seed) for seed in range(THREADS)]
    for _ in range(3):
        found = in_threads(lambda seed: device.sample_float32(num, seed=seed))
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert not kernels.state("pending")


def test_threads_that_need_other_chains_take_turns(kernels, memory):
    """Other batch sizes, and trajectories, are other buffers and graphs."""
    host, device = both(memory, batch_size=None)
    nums = [1 + seed % 3 for seed in range(THREADS)]

    def draw(sampler, seed):
        trajectory = Trajectory(sampler.table, PROCESS.sample, 4, nums[seed]) if seed % 2 else None
        x = np.concatenate([batch.x for batch in sampler.batches(nums[seed], seed=seed, trajectory=trajectory)])
        return (x,) if trajectory is None else (x, trajectory.x, trajectory.x_start)

    expected = [draw(host, seed) for seed in range(THREADS)]
    for ours, theirs in zip(in_threads(lambda seed: draw(device, seed)), expected, strict=True):
        for found, wanted in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_runs_are_iterated_by_turns(kernels, memory):
    host, device = both(memory)
    counts: list[list[int]] = [[], []]
    runs = [device.batches(8, seed=seed, after_step=counts[seed].append) for seed in range(2)]
    parts: list[list[np.ndarray]] = [[], []]
    for _ in range(3):
        for run, part in zip(runs, parts, strict=True):
            part.append(next(run).x)
    for seed in range(2):
        assert next(runs[seed], None) is None
        np.testing.assert_array_equal(np.concatenate(parts[seed]), host.sample_float32(8, seed=seed))
        assert sorted(counts[seed]) == [2] * 6 + [3] * 12  # whoever ran them, and each once
    assert device.engine.bound == [3, 3]  # they share the chains that one has


def test_a_caller_samples_while_it_looks_at_a_batch_or_is_told_of_a_step(kernels, memory):
    host, device = both(memory)
    other = host.sample_float32(4, seed=2)
    found = []

    def after_step(_):
        if len(found) < 5:
            found.append(device.sample_float32(4, seed=2))

    parts = []
    for batch in device.batches(8, seed=1, after_step=after_step):
        parts.append(batch.x)
        found.append(device.sample_float32(4, seed=2))
    np.testing.assert_array_equal(np.concatenate(parts), host.sample_float32(8, seed=1))
    assert len(found) > 5
    for each in found:
        np.testing.assert_array_equal(each, other)


@pytest.mark.parametrize("how", ["closed", "collected", "kept"])
def test_a_run_that_is_abandoned_leaves_its_chains_to_others(kernels, memory, how):
    host, device = both(memory)

    def some(seed):
        run = device.batches(9, seed=seed)
        first = next(run).x
        if how == "closed":
            run.close()
        elif how == "collected":
            del run
            gc.collect()
        return first, run if how == "kept" else None

    found = in_threads(some)
    for seed, (first, rest) in enumerate(found):
        expected = host.sample_float32(9, seed=seed)
        np.testing.assert_array_equal(first, expected[:3])
        if rest is not None:
            np.testing.assert_array_equal(np.concatenate([batch.x for batch in rest]), expected[3:])
    np.testing.assert_array_equal(device.sample_float32(9, seed=2), host.sample_float32(9, seed=2))
    del found
    assert not kernels.state("pending")


def test_an_error_reaches_the_caller_whose_batch_it_is(kernels, memory):
    host, device = both(memory)
    run = device.batches(9, seed=1)
    next(run)
    chain = device._chains._holder.running[0].chain
    wait = chain.wait

    def fail():
        chain.wait = wait
        raise RuntimeError("an illegal memory access was encountered")

    chain.wait = fail
    np.testing.assert_array_equal(device.sample_float32(3, seed=2), host.sample_float32(3, seed=2))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        list(run)
    np.testing.assert_array_equal(device.sample_float32(9, seed=3), host.sample_float32(9, seed=3))
