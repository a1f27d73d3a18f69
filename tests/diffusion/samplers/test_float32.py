"""Every sampler's float32 chains, the NumPy one and the compiled one, against the float64 loop."""

import numpy as np
import pytest

from diffusion.noise_schedule import NoiseSchedule
from diffusion.reference_loop import initial_noise, reference_loop
from diffusion.samplers import SAMPLERS, make_table
from runtime.chain.host import HostChain
from runtime.engines.interface import Engine
from tests.diffusion.samplers.networks import RandomNetwork, a_process, gaussian
from tests.kernels.numpy_step import ReferenceStep

SEED, START, NUM = 9, 50, 3


def numpy_chain(process, table, network):
    """x_0 by `ReferenceStep`, which is float32 throughout but for the network."""
    x = initial_noise((NUM, *process.sample.chw), SEED, START)
    prediction = np.zeros((NUM, process.prediction_channels, *x.shape[2:]), np.float32)
    histories = {name: np.zeros_like(x) for name in ("h1", "h2")[: table.histories]}
    t = np.full(NUM, table.timesteps[0], np.float32)
    step = ReferenceStep(
        table.cast(),
        table.timesteps.astype(np.int32),
        histories=table.histories,
        learned=table.learned,
        h2_is_x_start=table.h2_is_x_start,
        clip=table.clip,
        x=x,
        prediction=prediction,
        t=t,
        row=np.zeros(NUM, np.int32),
        seed=np.full(NUM, SEED, np.uint64),
        sample_index=np.arange(START, START + NUM, dtype=np.uint64),
        flag=np.zeros(NUM, np.int32),
        **histories,
    )
    for _ in range(len(table)):
        prediction[:] = network(x, t)
        step.run()
    return x


class NumpyEngine(Engine):
    """A network in NumPy where the host chain expects an engine."""

    name, sha256 = "NumPy", ""

    def __init__(self, process, network):
        self.process, self.network = process, network

    def batch_range(self):
        return 1, None

    def _bind(self, x, t, prediction):
        def call():
            prediction[:] = self.network(x, t)

        return call


def compiled_chain(process, table, network):
    """x_0 by the compiled step."""
    pytest.importorskip("runtime._kernels", reason="runtime._kernels is not built: run `make build`")
    chain = HostChain(NumpyEngine(process, network), table, NUM, threads=1)
    chain.begin([SEED] * NUM, list(range(START, START + NUM)))
    chain.run()
    assert not chain.non_finite()
    return chain.x


CHAINS = {"numpy": numpy_chain, "compiled": compiled_chain}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("clip_sample", [None, 0.5])
def test_float32_chains_equal_the_float64_loop(chain, sampler, kind, clip_sample):
    process = a_process(schedule=NoiseSchedule.make(kind), clip_sample=clip_sample)
    for num_steps in (10, 50, 250):
        table = make_table(process, sampler, num_steps)
        for make_network in (gaussian, RandomNetwork):
            network = make_network(process)
            x = initial_noise((NUM, *process.sample.chw), SEED, START)
            expected = reference_loop(table, network, x, SEED, START)
            difference = np.abs(CHAINS[chain](process, table, network) - expected).max()
            assert difference < table.absolute_tolerance()  # measured: up to half of it, at 1,000 steps


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_network_with_a_variance_runs_every_sampler(chain, sampler):
    process = a_process(variance_type="learned_range", clip_sample=0.5)
    table, network = make_table(process, sampler, 10), RandomNetwork(process)
    expected = reference_loop(table, network, initial_noise((NUM, *process.sample.chw), SEED, START), SEED, START)
    np.testing.assert_allclose(CHAINS[chain](process, table, network), expected, rtol=0, atol=2e-5)


def test_both_chains_have_the_same_bits():
    process = a_process(clip_sample=0.5)
    network = RandomNetwork(process)
    for sampler in SAMPLERS:
        table = make_table(process, sampler, 12)
        ours, compiled = (run(process, table, network) for run in (numpy_chain, compiled_chain))
        np.testing.assert_array_equal(ours.view(np.uint32), compiled.view(np.uint32))
