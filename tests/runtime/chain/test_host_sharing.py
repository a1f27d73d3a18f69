"""Threads, generators and processes that share a sampler or an engine: the bits of one caller alone, or an error."""

import gc
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime import Sampler
from runtime.chain.host import HostChain
from runtime.chain.host_pool import MAX_KEPT, MAX_LEASED
from runtime.engines.opening import open_engine
from tests.checkpoints import save_tiny_checkpoint
from tests.runtime.device.host_network import HostNetwork

THREADS = 8
PROCESS = Process(SampleShape(1, 3, 4), NoiseSchedule.make("linear", 50), variance_type="fixed_large")


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[str, dict]:
    """Arguments that open one tiny U-Net by each backend of the CPU."""
    from export.to_onnx import main

    folder = tmp_path_factory.mktemp("networks")
    checkpoint, onnx_file = save_tiny_checkpoint(folder / "checkpoint"), folder / "unet.onnx"
    assert main(["--checkpoint", str(checkpoint), "--out", str(onnx_file)]) == 0
    return {
        "onnxruntime": {"engine": onnx_file, "backend": "onnxruntime"},
        "openvino": {"engine": onnx_file, "backend": "openvino"},
        "pytorch": {"engine": checkpoint},
    }


BACKENDS = ("onnxruntime", "openvino", "pytorch")


def in_threads(work, arguments) -> list:
    """Results of all calls, begun at once."""
    barrier = threading.Barrier(THREADS)

    def begin(argument):
        barrier.wait(timeout=60)
        return work(argument)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, arguments, timeout=120))


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_share_a_sampler(networks, backend):
    sampler = Sampler(**networks[backend], num_steps=6, threads=1)
    nums = [1 + seed % 3 for seed in range(THREADS)]
    expected = [sampler.sample_float32(num, seed=seed) for seed, num in enumerate(nums)]
    for _ in range(3):
        found = in_threads(lambda seed: sampler.sample_float32(nums[seed], seed=seed), range(THREADS))
        for ours, alone in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, alone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_share_an_engine(networks, backend):
    engine = open_engine(networks[backend]["engine"], threads=1, backend=networks[backend].get("backend", "auto"))
    samplers = [Sampler(engine, num_steps=4 + place % 2, threads=1) for place in range(THREADS)]
    expected = [sampler.sample_float32(2, seed=seed) for seed, sampler in enumerate(samplers)]
    for _ in range(2):
        found = in_threads(lambda seed: samplers[seed].sample_float32(2, seed=seed), range(THREADS))
        for ours, alone in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, alone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_generators_are_abandoned_in_the_middle(networks, backend):
    sampler = Sampler(**networks[backend], num_steps=4, batch_size=1, threads=1)
    expected = [sampler.sample_float32(3, seed=seed) for seed in range(THREADS)]

    def some(seed):
        batches = sampler.batches(3, seed=seed)
        first = next(batches).x
        if seed % 3 == 0:
            batches.close()
        elif seed % 3 == 1:
            del batches
            gc.collect()
        else:  # kept, suspended, while others go on
            return first, batches
        return first, None

    found = in_threads(some, range(THREADS))
    for (first, _), alone in zip(found, expected, strict=True):
        np.testing.assert_array_equal(first[0], alone[0])
    np.testing.assert_array_equal(sampler.sample_float32(3, seed=0), expected[0])
    for seed, (_, rest) in enumerate(found):  # another thread goes on with what one began
        if rest is not None:
            np.testing.assert_array_equal(np.concatenate([batch.x for batch in rest]), expected[seed][1:])


class Watched(HostNetwork):
    """Counts the calls that run at once, and the buffers that are bound."""

    def __init__(self, process=PROCESS):
        super().__init__(process)
        self.at_once = self.most_at_once = 0
        self.bound: list[int] = []
        self._lock = threading.Lock()

    def _bind(self, x, t, prediction):
        self.bound.append(len(x))

        def call() -> None:
            with self._lock:
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
            threading.Event().wait(0.001)
            prediction[:] = self.predict(x, t)
            with self._lock:
                self.at_once -= 1

        return call


def test_few_chains_are_at_work_at_once():
    engine = Watched()
    sampler = Sampler(engine, num_steps=5)
    in_threads(lambda seed: sampler.sample(2, seed=seed), range(THREADS))
    assert 1 <= engine.most_at_once <= MAX_LEASED
    assert len(engine.bound) <= MAX_LEASED


def test_few_chains_are_kept_whatever_is_drawn(monkeypatch):
    alive = []
    monkeypatch.setattr(HostChain, "__del__", lambda chain: alive.remove(id(chain)), raising=False)
    init = HostChain.__init__

    def counted(chain, *arguments):
        alive.append(id(chain))
        init(chain, *arguments)

    monkeypatch.setattr(HostChain, "__init__", counted)
    sampler = Sampler(HostNetwork(PROCESS), num_steps=2)
    for num in range(1, 31):
        sampler.sample(num)
    gc.collect()
    assert len(alive) <= MAX_KEPT


def test_a_caller_samples_while_it_looks_at_a_batch_or_is_told_of_a_step():
    sampler = Sampler(HostNetwork(PROCESS), num_steps=3, batch_size=2)
    expected, other = sampler.sample_float32(6, seed=1), sampler.sample_float32(4, seed=2)
    depth, found = [0], []

    def after_step(_):
        if depth[0] < MAX_LEASED + 1:  # more than may be leased to several threads
            depth[0] += 1
            found.append(np.concatenate([batch.x for batch in sampler.batches(4, seed=2, after_step=after_step)]))

    parts = []
    for batch in sampler.batches(6, seed=1, after_step=after_step):
        parts.append(batch.x)
        np.testing.assert_array_equal(sampler.sample_float32(4, seed=2), other)
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    assert len(found) == MAX_LEASED + 1
    for each in found:
        np.testing.assert_array_equal(each, other)


def test_an_error_in_a_step_gives_the_chain_back():
    sampler = Sampler(HostNetwork(PROCESS), num_steps=3)
    expected = sampler.sample_float32(2)

    def fail(_):
        raise KeyboardInterrupt

    for _ in range(3 * MAX_LEASED):
        with pytest.raises(KeyboardInterrupt):
            list(sampler.batches(2, after_step=fail))
    np.testing.assert_array_equal(sampler.sample_float32(2), expected)


def _sampled_in_child(sampler: Sampler, engine, answer) -> None:
    said = []
    for work in (lambda: sampler.sample(1), lambda: Sampler(engine, num_steps=2).sample(1)):
        try:
            work()
            said.append("sampled")
        except InputError as error:
            said.append(str(error))
    answer.send(said)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fork_is_refused_instead_of_waiting_for_threads_that_it_does_not_have(networks, backend):
    sampler = Sampler(**networks[backend], num_steps=2)
    sampler.sample(1)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_sampled_in_child, args=(sampler, sampler.engine, theirs))
    child.start()
    try:
        assert ours.poll(60), "the child hangs"
        said = ours.recv()
    finally:
        child.kill()
        child.join()
    for each in said:
        assert f"{networks[backend]['engine']} was opened in process" in each
