"""The chain on the device has the bits of the chain on the host, whatever launches its rows."""

import numpy as np
import pytest

from benchmarks.device.device_arrays import differing_elements
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from diffusion.samplers import make_table
from runtime.chain.device import DeviceChain
from runtime.chain.launchers import GRAPH_KINDS
from tests.gpu import chains
from tests.gpu.chains import INDICES, SEEDS, chain_problems, run_on_host
from tests.gpu.echo_engine import EchoEngine
from tests.gpu.software_machine import SHAPE, a_process

SAMPLERS = {"ddpm": 0, "dpmpp_2m": 1, "unipc": 2}
"""A sampler for each number of histories."""
NUM_STEPS = 11
ODD_SHAPE = SampleShape(2, 5, 7)
"""Whose elements are not whole eights."""
ECHO_CASES = (
    *((SHAPE, sampler, False, "fp32", "float32") for sampler in SAMPLERS),
    *((SHAPE, "ddpm", True, precision, "int64") for precision in ("fp32", "fp16", "bf16")),
    *((ODD_SHAPE, sampler, False, "bf16", "int64") for sampler in SAMPLERS),
)


@pytest.mark.parametrize("num", [1, 2, 5])
@pytest.mark.parametrize(("shape", "sampler", "learned", "precision", "t_type"), ECHO_CASES)
def test_the_echo_network(machine, shape, sampler, learned, precision, t_type, num):
    """Every type of network input and of timesteps, every number of histories, a learned variance."""
    process = a_process(shape, learned)
    table = make_table(process, sampler, NUM_STEPS)
    assert table.histories == SAMPLERS[sampler]
    engine = EchoEngine(process, precision, t_type, machine.memory, machine.kernels)
    assert chain_problems(engine, table, run_on_host(engine, table, num)) == []


@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_idle_samples_are_left_alone(machine, kind):
    """Two of four slots are used."""
    process = a_process(SHAPE)
    table = make_table(process, "ddpm", NUM_STEPS)
    engine = EchoEngine(process, "fp32", "int64", machine.memory, machine.kernels)
    chain = DeviceChain(engine, table, 4, graph=kind)
    try:
        chain.begin(SEEDS[:2], INDICES[:2])
        idle = chain.x[2:]
        chain.run()
        assert differing_elements(chain.x[:2], run_on_host(engine, table, 2)["x"]) == 0
        assert differing_elements(chain.x[2:], idle) == 0
    finally:
        chain.close()


def test_the_launch_that_is_measured_to_be_faster_gives_the_same_bits(machine):
    process = a_process(SHAPE)
    table = make_table(process, "ddpm", 60)
    engine = EchoEngine(process, "bf16", "int64", machine.memory, machine.kernels)
    chain = DeviceChain(engine, table, 2, graph="measured")
    try:
        for _ in range(2):
            chain.begin(SEEDS[:2], INDICES[:2])
            for rows in (1, 40, 19):
                chain.enqueue(rows)
                chain.wait()
            assert chain.graph in ("while", "step")
            assert differing_elements(chain.x, run_on_host(engine, table, 2)["x"]) == 0
    finally:
        chain.close()


@pytest.mark.parametrize(("sampler", "learned"), [*((sampler, False) for sampler in SAMPLERS), ("ddpm", True)])
def test_the_gaussian_network_in_pytorch(machine, sampler, learned):
    """Captured by PyTorch, against NumPy's on the host."""
    on_gpu = machine.torch is not None  # raises where there is none
    pytest.importorskip("torch")
    from runtime.engines.torch_call import TorchModuleEngine
    from tests.gpu.closed_form import GaussianEngine, GaussianNetwork

    if not on_gpu:  # PyTorch of the CPU works on the device's memory, and at once: so does the device
        machine.kernels.software_share_memory()
        machine.kernels.software_set_eagerness(1.0)
    process = a_process(SHAPE, learned)
    table = make_table(process, sampler, NUM_STEPS)
    network = GaussianNetwork(process)
    expected = run_on_host(GaussianEngine(network), table, 2)
    engine = TorchModuleEngine(network, process, "fp32", machine.memory, "0" * 64, device="cuda" if on_gpu else "cpu")
    assert chain_problems(engine, table, expected, GRAPH_KINDS if on_gpu else ("none",)) == []


def test_the_closed_form_network_is_optimal():
    """Where nothing is left of the data its eps is x; where nothing is added it is the noise that x must have."""
    torch = pytest.importorskip("torch")
    from tests.gpu.closed_form import GaussianNetwork

    process = Process(SampleShape(1, 2, 2), NoiseSchedule.make("linear"))
    network = GaussianNetwork(process, mean=0.25, std=0.5)
    x = torch.full((2, 1, 2, 2), 0.75)
    eps = network(x, torch.tensor([0, 999]))
    alpha_bar = process.schedule.alpha_bar[[0, 999]]
    mean, variance = np.sqrt(alpha_bar) * 0.25, alpha_bar * 0.25 + 1 - alpha_bar
    expected = np.sqrt(1 - alpha_bar) * (0.75 - mean) / variance
    np.testing.assert_allclose(eps[:, 0, 0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("machine", ["software"], indirect=True)
def test_a_chain_that_falls_back_is_a_failure(machine):
    machine.kernels.software_refuse("cudaGraphAddNode")
    process = a_process(SHAPE)
    table = make_table(process, "ddpm", NUM_STEPS)
    engine = EchoEngine(process, "fp32", "float32", machine.memory, machine.kernels)
    problems = chain_problems(engine, table, run_on_host(engine, table, 2))
    assert "while was asked for, step is used" in problems[0]


@pytest.mark.parametrize("machine", ["software"], indirect=True)
@pytest.mark.parametrize("part", chains.PARTS)
def test_a_chain_with_another_state_is_a_failure(machine, part):
    process = a_process(SHAPE)
    table = make_table(process, "ddpm", NUM_STEPS)
    engine = EchoEngine(process, "fp32", "float32", machine.memory, machine.kernels)
    expected = run_on_host(engine, table, 2)
    flat = expected[part].reshape(-1)
    flat[-1:] = ~flat[-1:] if flat.dtype == bool else flat[-1:] + 1
    problems = chain_problems(engine, table, expected)
    assert problems[0] == f"while, 1 pieces: 1 of {part} differ"
    assert len(problems) == 3 * 2  # three ways to launch, in one piece and in three
