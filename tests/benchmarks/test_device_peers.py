"""The peers that a GPU's figures are compared with, in PyTorch on the CPU."""

import contextlib
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks.device.gpu_machine import EAGER_PIPELINE, GRAPH_LOOP, PIPELINE, GpuMachine  # noqa: E402
from benchmarks.device.kernels_build import ROOT  # noqa: E402
from benchmarks.device.torch_loops import DiffusersSampler, GraphLoop, update  # noqa: E402
from benchmarks.device.wall_clock import GOALS  # noqa: E402
from diffusion.noise_schedule import NoiseSchedule  # noqa: E402
from diffusion.process import Process, SampleShape  # noqa: E402
from diffusion.samplers import make_table  # noqa: E402
from runtime.engines.torch_call import TorchModuleEngine  # noqa: E402
from tests.checkpoints import save_tiny_checkpoint  # noqa: E402
from tests.gpu.closed_form import GaussianNetwork  # noqa: E402
from tests.kernels.numpy_step import apply_row  # noqa: E402
from tests.runtime.engines.shared_device import kernels, memory  # noqa: E402

__all__ = ["kernels", "memory"]  # fixtures


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


def test_the_graph_loop_samples(memory, without_cuda):
    """x_0 ~ N(0.1, 0.5²) from its own network; 300 samples of 12 elements."""
    process = Process(SampleShape(3, 2, 2), NoiseSchedule.make("linear"), clip_sample=None)
    engine = TorchModuleEngine(GaussianNetwork(process), process, "fp32", memory, "0" * 64, device="cpu")
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


def test_diffusers_pipeline_as_a_call(tmp_path):
    folder = save_tiny_checkpoint(tmp_path, num_train_timesteps=1000)
    for precision in ("fp32", "bf16"):
        images = DiffusersSampler(folder, precision, 2, 2, compiled=False, device="cpu")()
        assert images.shape[0] == 2
        assert 0 <= images.min() <= images.max() <= 1


def test_the_network_and_its_peers_are_those_of_a_checkpoint(tmp_path, memory, monkeypatch):
    """With PyTorch's CPU in the GPU's place."""
    machine = GpuMachine(tmp_path)
    machine.memory, machine.torch = memory, torch
    save_tiny_checkpoint(tmp_path / "checkpoint", num_train_timesteps=1000)
    (tmp_path / "checkpoint.json").write_text("{}")  # made before
    engine = type("engine", (), {"precision": "bf16"})
    assert set(machine.peers(engine, 1, 50, compiled=True)) == {GRAPH_LOOP, PIPELINE} == set(GOALS)
    assert list(machine.peers(engine, 1, 50, compiled=False)) == [EAGER_PIPELINE]
    from runtime.engines import torch_device
    from runtime.engines.torch_checkpoint import TorchEngine

    reference = machine.reference()
    x = np.random.default_rng(0).normal(size=(2, *TorchEngine(machine.checkpoint()).process.sample.chw)).astype("f4")
    t, found = np.array([7, 999], np.float32), np.zeros_like(x)
    TorchEngine(machine.checkpoint()).bind(x, t, found)()
    np.testing.assert_allclose(reference(x, t), found, atol=1e-5)
    made = []
    monkeypatch.setattr(torch_device, "TorchDeviceEngine", lambda *given, **named: made.append((given, named)))
    machine.engine("bf16", compiled=True)
    assert made == [((tmp_path / "checkpoint", "bf16", True), {"memory": memory})]


def test_what_must_run_without_diffusers_does_not_import_it():
    """Nor PyTorch, where the compiled kernels alone are needed."""
    program = (
        "import sys; sys.modules.update(dict.fromkeys({blocked}, None))\n"
        "import benchmarks.gpu_check.command\n"
        "from benchmarks.device import {modules}\n"
        "from tests.gpu import sanitized_work, test_noise, test_step, test_chain, test_network\n"
    )
    kernels_alone = "command, facts, step_bandwidth, chain_overhead, wall_clock, tensorrt_modules"
    for blocked, modules in (
        ("['torch', 'diffusers']", kernels_alone),
        ("['diffusers']", f"{kernels_alone}, torch_loops, engine_files"),
    ):
        code = program.format(blocked=blocked, modules=modules)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
