"""The networks and the loops that the GPU's figures compare, in PyTorch on the CPU."""

import contextlib
import copy
import importlib.util
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks.gpu_check import cifar_network, compiled_peers, eager_peers, network_bits  # noqa: E402
from benchmarks.gpu_check.closed_form import GaussianEngine, GaussianNetwork  # noqa: E402
from benchmarks.gpu_check.diffusers_peer import DiffusersSampler  # noqa: E402
from benchmarks.gpu_check.kernels_build import ROOT  # noqa: E402
from benchmarks.gpu_check.module_engine import ModuleEngine  # noqa: E402
from benchmarks.gpu_check.plain_unet import PlainUNet, random_plain_unet  # noqa: E402
from benchmarks.gpu_check.torch_loops import GraphLoop, PlainLoop, update  # noqa: E402
from benchmarks.networks import CIFAR10_UNET, random_network  # noqa: E402
from diffusion.noise_schedule import NoiseSchedule  # noqa: E402
from diffusion.process import Process, SampleShape  # noqa: E402
from diffusion.samplers import make_table  # noqa: E402
from runtime.chain.device import DeviceChain  # noqa: E402
from runtime.chain.host import HostChain  # noqa: E402
from tests.benchmarks.gpu_check_device import device_context, let_pytorch_in  # noqa: E402
from tests.kernels.numpy_step import apply_row  # noqa: E402

SMALL = {"widths": (32, 64, 64, 64), "groups": 8}
SMALL_UNET = CIFAR10_UNET | {"block_out_channels": SMALL["widths"], "norm_num_groups": SMALL["groups"]}


@pytest.fixture(scope="module")
def theirs():
    return random_network(0, **SMALL_UNET)


@pytest.fixture(scope="module")
def ours(theirs):
    network = PlainUNet(**SMALL).eval()
    network.load_state_dict(theirs.state_dict())  # every name and shape
    return network


def test_the_plain_network_is_diffusers(theirs, ours):
    x, t = torch.randn(3, 3, 32, 32), torch.tensor([0, 371, 999])
    with torch.no_grad():
        expected = theirs(x, t).sample
        assert (ours(x, t) - expected).abs().max() < 2e-5 * expected.abs().max()


def test_its_time_path_can_be_evaluated_beforehand(ours):
    folded = copy.deepcopy(ours).fold_time(1000)
    assert len(list(folded.parameters())) < len(list(ours.parameters()))
    assert folded.shift_rows.shape == (1000, sum(block.conv1.out_channels for block in folded._residuals()))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for t in (torch.tensor([0, 999]), torch.tensor([500, 3])):
            expected = ours(x, t)
            assert (folded(x, t) - expected).abs().max() < 2e-5 * expected.abs().max()
        in_bfloat16 = folded.to(torch.bfloat16)(x.to(torch.bfloat16), t).float()
    assert (in_bfloat16 - expected).norm() < 0.05 * expected.norm()


def test_the_full_network_has_the_parameters_of_ddpm_cifar10_32():
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in PlainUNet().parameters()) == 35_746_307


def test_random_weights_give_predictions_as_large_as_noise():
    network = random_plain_unet(**SMALL)
    with torch.no_grad():
        std = network(torch.randn(2, 3, 32, 32), torch.tensor([100, 900])).std()
    assert 0.5 < std < 2
    assert torch.equal(network.conv_in.weight, random_plain_unet(**SMALL).conv_in.weight)


@pytest.fixture
def context(request, monkeypatch, tmp_path):
    """Of a stage, on a device whose memory PyTorch uses from the CPU."""
    for context, _ in device_context(request, monkeypatch, tmp_path):
        let_pytorch_in(context)
        yield context


def test_without_diffusers_the_plain_network_runs_the_chain(monkeypatch, context):
    """An engine around the module, its bits those of the network on the CPU."""
    monkeypatch.setattr("benchmarks.gpu_check.plain_unet.random_plain_unet", lambda: random_plain_unet(**SMALL))
    engine = cifar_network.plain_engine(context.memory, "fp32", device="cpu")
    assert engine.name == "plain PyTorch U-Net (fp32)"
    table = make_table(engine.process, num_steps=3)
    chain = DeviceChain(engine, table, 2, graph="none")
    chain.begin([1, 2], [3, 4])
    chain.run()
    host = HostChain(engine, table, 2)
    host.begin([1, 2], [3, 4])
    for _ in range(3):
        host.step()
    np.testing.assert_array_equal(chain.x, host.x)
    monkeypatch.setattr(network_bits, "has_diffusers", lambda: False)
    assert network_bits.largest_error(engine, network_bits.reference(context)) < 1e-4
    bf16 = cifar_network.plain_engine(context.memory, "bf16", device="cpu")
    error = network_bits.largest_error(bf16, network_bits.reference(context))
    assert 1e-3 < error < network_bits.TOLERANCES["bf16"]


def test_the_closed_form_network_is_optimal():
    """Where nothing is left of the data its eps is x; where nothing is added it is the noise that x must have."""
    process = Process(SampleShape(1, 2, 2), NoiseSchedule.make("linear"))
    network = GaussianNetwork(process, mean=0.25, std=0.5)
    x = torch.full((2, 1, 2, 2), 0.75)
    eps = network(x, torch.tensor([0, 999]))
    alpha_bar = process.schedule.alpha_bar[[0, 999]]
    mean, variance = np.sqrt(alpha_bar) * 0.25, alpha_bar * 0.25 + 1 - alpha_bar
    expected = np.sqrt(1 - alpha_bar) * (0.75 - mean) / variance
    np.testing.assert_allclose(eps[:, 0, 0, 0], expected, rtol=1e-5)


def test_the_closed_form_network_in_numpy_has_the_bits_of_pytorchs():
    learned = Process(SampleShape(2, 3, 3), NoiseSchedule.make("linear"), variance_type="learned_range")
    network = GaussianNetwork(learned)
    x = np.random.default_rng(0).standard_normal((3, 2, 3, 3)).astype(np.float32)
    t, prediction = np.array([0, 500, 999], np.float32), np.zeros((3, 4, 3, 3), np.float32)
    GaussianEngine(network).bind(x, t, prediction)()
    np.testing.assert_array_equal(prediction, network(torch.from_numpy(x), torch.from_numpy(t).long()).numpy())


@pytest.mark.parametrize("compiled", [False, True])
def test_the_graph_loops_update_is_the_step(compiled):
    process = Process(SampleShape(2, 3, 3), NoiseSchedule.make("linear"), variance_type="fixed_large")
    table = make_table(process, num_steps=4)
    rng = np.random.default_rng(1)
    x, prediction, noise = (torch.from_numpy(rng.standard_normal((2, 2, 3, 3)).astype(np.float32)) for _ in range(3))
    timesteps = torch.from_numpy(np.append(table.timesteps, table.timesteps[-1]))
    row, t, fed = torch.zeros(1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 2, 3, 3)
    prediction, fed = prediction.to(torch.bfloat16), fed.to(torch.bfloat16)
    run = torch.compile(update, backend="aot_eager", dynamic=False) if compiled else update
    expected = x.numpy().copy()
    coefficients = table.cast()
    for number in range(4):
        p = prediction.float().numpy()
        expected = apply_row(coefficients[number], expected, p, z=noise.numpy(), clip=table.clip)[0]
        with torch.no_grad():
            run(x, fed, prediction, noise, t, row, torch.from_numpy(coefficients), timesteps, float(table.clip))
        np.testing.assert_allclose(x.numpy(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(fed, x.to(torch.bfloat16))
        assert row.item() == number + 1
        assert t.tolist() == [int(timesteps[number + 1])] * 2


class RecordedGraph:
    """In place of CUDA's: what is run while it is recorded is run again at each replay."""

    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1
        self.step()


@pytest.fixture
def without_cuda(monkeypatch):
    """Streams and graphs of PyTorch for the CPU."""

    class Stream:
        cuda_stream = 0

        def wait_stream(self, other):
            pass

        def synchronize(self):
            pass

    @contextlib.contextmanager
    def graph(recorded, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        yield

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", graph)


def test_the_graph_loop_samples(context, without_cuda):
    """As the plain loop: x_0 ~ N(0.1, 0.5²)."""
    process = Process(SampleShape(3, 2, 2), NoiseSchedule.make("linear"), clip_sample=None)
    engine = ModuleEngine(GaussianNetwork(process), process, "float32", context.memory, "Gaussian", device="cpu")
    loop = GraphLoop(engine, 300, 1000, compiled=False, device="cpu")
    loop._graph.step = loop._step
    torch.manual_seed(0)
    loop()
    assert loop._graph.replays == 1000
    assert loop.is_finite()
    assert abs(loop._x.mean() - 0.1) < 0.03
    assert abs(loop._x.std() - 0.5) < 0.03
    assert loop._row.item() == 1000
    assert torch.equal(loop._fed, loop._x)


def test_the_plain_loop_samples():
    """x_0 ~ N(0.1, 0.5²) from its own network; 300 samples of 12 elements."""
    process = Process(SampleShape(3, 2, 2), NoiseSchedule.make("linear"), clip_sample=None)
    torch.manual_seed(0)
    x = PlainLoop(GaussianNetwork(process), process, 300, 1000, torch.float32, device="cpu")()
    assert x.shape == (300, 3, 2, 2)
    assert abs(x.mean() - 0.1) < 0.03
    assert abs(x.std() - 0.5) < 0.03


def test_diffusers_pipeline_as_a_call(tmp_path, theirs):
    from diffusers import DDPMPipeline, DDPMScheduler

    DDPMPipeline(theirs, DDPMScheduler(variance_type="fixed_large")).save_pretrained(tmp_path)
    for precision in ("fp32", "bf16"):
        images = DiffusersSampler(tmp_path, precision, 2, 2, compiled=False, device="cpu")()
        assert images.shape == (2, 3, 32, 32)
        assert 0 <= images.min() <= images.max() <= 1


def test_a_module_as_an_engine_reads_and_writes_the_buffers_themselves(context):
    process = Process(SampleShape(1, 2, 2), NoiseSchedule.make("linear"))
    engine = ModuleEngine(GaussianNetwork(process), process, "float32", context.memory, "Gaussian", device="cpu")
    stream = context.memory.make_stream()
    addresses = [context.memory.allocate(64) for _ in range(3)]
    for address, array in zip(
        addresses, (np.ones((2, 1, 2, 2), np.float32), np.array([5, 700]), np.zeros(8, np.float32)), strict=True
    ):
        context.memory.to_device(address, array, stream)
    call = engine.bind_device(*addresses, 2, stream)
    assert call.graph(stream) is None  # the CPU has none
    call.enqueue(stream)
    found = np.zeros((2, 1, 2, 2), np.float32)
    context.memory.to_host(found, addresses[2], stream)
    np.testing.assert_array_equal(found, GaussianNetwork(process)(torch.ones(2, 1, 2, 2), torch.tensor([5, 700])))
    for address in addresses:
        context.memory.free(address)
    context.memory.free_stream(stream)


def test_peers_depend_on_what_is_installed(monkeypatch, tmp_path, context):
    (tmp_path / "checkpoint.json").write_text("{}")  # made before
    with_diffusers = list(compiled_peers.peers(context, 1, "bf16"))
    assert with_diffusers == [compiled_peers.GRAPH_LOOP, compiled_peers.PIPELINE, compiled_peers.COMPILED_LOOP]
    honest = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "diffusers" else honest(name, *rest)
    )
    cifar_network.has_diffusers.cache_clear()
    try:
        without = list(compiled_peers.peers(context, 1, "bf16"))
    finally:
        cifar_network.has_diffusers.cache_clear()
    assert without == [compiled_peers.GRAPH_LOOP, compiled_peers.COMPILED_LOOP]
    assert set(compiled_peers.GOALS) == {compiled_peers.GRAPH_LOOP, compiled_peers.PIPELINE}
    assert eager_peers.OURS.startswith("ours")


def test_what_must_run_without_diffusers_does_not_import_it():
    """Nor PyTorch, where the compiled kernels alone are needed."""
    program = (
        "import sys; sys.modules.update(dict.fromkeys({blocked}, None))\n"
        "import benchmarks.gpu_check.command\n"
        "from benchmarks.gpu_check import {modules}\n"
    )
    kernels_alone = "build_stage, noise_bits, step_bits, chain_bits, step_bandwidth, sanitized_work, sanitizer_stage"
    with_torch = "network_bits, chain_overhead, eager_peers, compiled_peers, torch_loops, plain_unet, full_chain"
    for blocked, modules in (
        ("['torch', 'diffusers']", kernels_alone),
        ("['diffusers']", f"{kernels_alone}, {with_torch}, module_engine, closed_form, engine_files"),
    ):
        code = program.format(blocked=blocked, modules=modules)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
