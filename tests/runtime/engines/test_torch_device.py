"""The checkpoint on a device, with PyTorch's CPU in the device's place; graphs and CUDA itself need a GPU."""

import contextlib
import os

import numpy as np
import pytest
import torch

from commands.errors import DeviceUnavailableError, VerificationError
from diffusion.errors import InputError
from diffusion.samplers import make_table
from runtime.chain.device import DeviceChain
from runtime.chain.host import HostChain
from runtime.engines import torch_call, torch_device
from runtime.engines.cache_folder import user_cache_folder
from runtime.engines.torch_call import COMPILE_OPTIONS, without_tf32
from runtime.engines.torch_checkpoint import Network, TorchEngine, load_checkpoint
from runtime.engines.torch_device import TorchDeviceEngine, _Columns, fold_time, open_checkpoint_on_gpu
from runtime.engines.verification import relative_error
from runtime.formats.place import Place
from runtime.formats.precision import PRECISIONS
from tests.checkpoints import save_tiny_checkpoint
from tests.runtime.engines.shared_device import kernels, memory

__all__ = ["kernels", "memory"]  # fixtures

NETWORKS = {
    "default": {},
    "scale and shift": {"unet": {"resnet_time_scale_shift": "scale_shift"}},
    "learned embedding": {"unet": {"time_embedding_type": "learned", "num_train_timesteps": 1000}},
    "down and up by residual blocks": {"unet": {"downsample_type": "resnet", "upsample_type": "resnet"}},
    "learned variance": {"variance_type": "learned_range", "channels": 3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), num_train_timesteps=1000)


def predictions(network, shape, channels_out, t):
    x = torch.randn((len(t), *shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network(x, t)


@pytest.mark.parametrize("kind", NETWORKS)
def test_folding_the_time_path_changes_no_prediction(tmp_path, kind):
    checkpoint = load_checkpoint(save_tiny_checkpoint(tmp_path, **NETWORKS[kind]))
    chw, t = checkpoint.process.sample.chw, torch.tensor([0, 1, 500, 998, 999])
    x = torch.randn((len(t), *chw), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = Network(checkpoint.unet)(x, t.to(torch.float32))
        fold_time(checkpoint.unet, 1000)
        after = checkpoint.unet(x, t, return_dict=False)[0]
        swapped = checkpoint.unet(x, t.flip(0), return_dict=False)[0]
    assert relative_error(after.numpy(), before.numpy()) < 1e-6
    assert relative_error(swapped.numpy(), before.numpy()) > 1e-3  # t still matters
    left = [module for module in checkpoint.unet.modules() if isinstance(module, torch.nn.Linear)]
    folded = [module for module in checkpoint.unet.modules() if isinstance(module, _Columns)]
    assert len(folded) >= 6
    assert len(left) == sum(4 for name, _ in checkpoint.unet.named_modules() if name.endswith(".to_q"))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_chain_gives_what_the_reference_gives(folder, kernels, memory, precision):
    engine = TorchDeviceEngine(folder, precision, memory=memory, device="cpu")
    reference = TorchEngine(folder)
    table = make_table(engine.process, num_steps=20)
    chain = DeviceChain(engine, table, 2)
    assert chain.graph == "none"  # there are no graphs here
    host = HostChain(reference, table, 2)
    for each in (chain, host):
        each.begin([3, 3], [0, 1])
        each.run()
    error = relative_error(chain.x, host.x)
    assert error < {"fp32": 1e-5}.get(precision, PRECISIONS[precision].tolerance)
    assert precision == "fp32" or error > 1e-5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_call_from_the_host(folder, memory, precision):
    engine = TorchDeviceEngine(folder, precision, memory=memory, device="cpu")
    chw = engine.process.sample.chw
    x = np.random.default_rng(0).normal(size=(3, *chw)).astype(np.float32)
    t = np.array([0, 500, 999], np.float32)
    found, expected = np.zeros_like(x), np.zeros_like(x)
    engine.bind(x, t, found)()
    TorchEngine(folder).bind(x, t, expected)()
    errors = [relative_error(ours, theirs) for ours, theirs in zip(found, expected, strict=True)]
    assert max(errors) < PRECISIONS[precision].tolerance
    # Unfolded, bf16 would see t = 999 as 1000.
    assert max(errors) < 2 * max(np.median(errors), 0.1 * PRECISIONS[precision].tolerance)


def test_a_precision_is_an_identity_of_its_own(folder, memory):
    engines = [TorchDeviceEngine(folder, precision, memory=memory, device="cpu") for precision in ("fp32", "bf16")]
    assert engines[0].sha256 == TorchEngine(folder).sha256
    assert engines[0].sha256 != engines[1].sha256
    assert len(engines[1].sha256) == 64
    assert engines[1].name.endswith("(CPU, bf16)")
    with pytest.raises(InputError, match="precision is 'int8', expected one of fp32, fp16, bf16"):
        TorchDeviceEngine(folder, "int8", memory=memory, device="cpu")


def test_torch_compile_sees_one_graph_and_no_break(folder, memory, monkeypatch):
    """With a backend that compiles nothing: what is asked of inductor, and that the call can be traced whole."""
    asked = []
    compile_function = torch.compile

    def traced(function, **options):
        asked.append(options)
        return compile_function(function, backend="eager", fullgraph=True, dynamic=options["dynamic"])

    monkeypatch.setattr(torch, "compile", traced)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    engine = TorchDeviceEngine(folder, compiled=True, memory=memory, device="cpu")
    assert asked == [{"options": COMPILE_OPTIONS, "dynamic": False}]
    x = np.random.default_rng(0).normal(size=(2, *engine.process.sample.chw)).astype(np.float32)
    t = np.array([7, 999], np.float32)
    found, expected = np.zeros_like(x), np.zeros_like(x)
    engine.bind(x, t, found)()
    TorchEngine(folder).bind(x, t, expected)()
    assert relative_error(found, expected) < 1e-5
    assert os.environ.pop("TORCHINDUCTOR_CACHE_DIR") == str(user_cache_folder("inductor"))


def test_inductor_knows_the_options_and_never_takes_triton_for_convolutions():
    from torch._inductor import config

    assert set(COMPILE_OPTIONS) <= set(config.get_config_copy())
    assert COMPILE_OPTIONS["max_autotune_conv_backends"] == "ATEN"
    assert COMPILE_OPTIONS["coordinate_descent_tuning"] is False


def test_cudnn_times_all_algorithms_and_keeps_float32(monkeypatch):
    asked = []
    monkeypatch.setattr(
        torch.backends.cudnn, "flags", lambda **flags: (asked.append(flags), contextlib.nullcontext())[1]
    )
    with without_tf32(benchmark=True):
        assert asked == [{"enabled": True, "benchmark": True, "benchmark_limit": 0, "allow_tf32": False}]


@pytest.fixture
def verified(folder, memory, monkeypatch, tmp_path):
    """An opened engine, as `open_checkpoint_on_gpu` makes it, with PyTorch's CPU in the GPU's place."""
    monkeypatch.setattr("runtime.engines.torch_device.gpu_place", lambda: Place("CPU", "1", str(tmp_path)))
    monkeypatch.setattr(torch_device, "_expect_cuda", lambda: None)
    honest = TorchDeviceEngine.__init__
    monkeypatch.setattr(
        TorchDeviceEngine,
        "__init__",
        lambda self, *given, **named: honest(self, *given, memory=memory, device="cpu", **named),
    )
    monkeypatch.setattr(torch, "compile", lambda function, **options: lambda *tensors: compiled_run(function, *tensors))
    plant = {}

    def compiled_run(function, x, t, prediction):
        function(x, t, prediction)
        if len(x) in plant:
            prediction[plant[len(x)]] *= 1.2

    def opened(precision="fp32", compiled=False):
        return open_checkpoint_on_gpu(folder, precision, compiled, None, False), plant

    return opened


def test_low_precision_is_verified_once_when_it_is_opened(verified, capsys, monkeypatch):
    verified("bf16")
    assert "verified: predictions at most" in capsys.readouterr().err
    verified("bf16")
    assert capsys.readouterr().err == ""
    verified("fp32")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(torch_device._Folded, "forward", lambda self, x, t: 1.2 * self.unet(x, t, return_dict=False)[0])
    with pytest.raises(VerificationError, match="it differs from PyTorch in float32 on the CPU; run it without"):
        verified("fp16")


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_compiled_engine_is_verified_at_each_batch_size_before_it_is_used(verified, batch_size, capsys):
    """The kernels of one batch are wrong in one sample; those of the others are not."""
    engine, plant = verified(compiled=True)
    assert capsys.readouterr().err == ""  # nothing is compiled yet
    plant[batch_size] = batch_size - 1

    def predict(num):
        x = np.random.default_rng(0).normal(size=(num, *engine.process.sample.chw)).astype(np.float32)
        found = np.zeros_like(x)
        engine.bind(x, np.array([999, 500, 7, 1, 0], np.float32)[:num], found)()
        return found

    predict(3)
    assert capsys.readouterr().err.count("verified: predictions") == 1
    predict(3)
    assert capsys.readouterr().err == ""
    for _ in range(2):  # once found wrong it stays refused
        with pytest.raises(VerificationError, match="it differs from PyTorch"):
            predict(batch_size)


class GraphThatFails:
    """In place of `torch.cuda.CUDAGraph`."""

    made = 0

    def __init__(self, keep_graph):
        GraphThatFails.made += 1


def test_after_a_failed_capture_nothing_is_captured_in_the_process(memory, monkeypatch):
    """PyTorch's allocator stays in the state of a capture, and the graph must outlive it."""
    failed = []
    monkeypatch.setattr(torch_call, "_failed_captures", failed)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", GraphThatFails)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda stream, device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: contextlib.nullcontext())
    calls = []

    def run(*_):
        calls.append(len(calls))
        if len(calls) == 4:  # three to warm up, then the capture
            raise RuntimeError("operation not permitted when stream is capturing")

    stream = memory.make_stream()
    first, second = (
        torch_call.TorchCall("network", run, (torch.zeros(1),) * 3, torch.device("cuda"), memory) for _ in range(2)
    )
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        first.graph(stream)
    assert [type(graph) for graph in failed] == [GraphThatFails]
    for call in (first, second):
        with pytest.raises(RuntimeError, match="an earlier capture failed in this process"):
            call.graph(stream)
    assert (len(calls), GraphThatFails.made) == (4, 1)
    second.enqueue(stream)  # plain launches go on
    memory.free_stream(stream)


def test_too_little_memory_is_an_input_error(folder, memory):
    engine = TorchDeviceEngine(folder, memory=memory, device="cpu")

    def run(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")

    engine._run = run
    stream = memory.make_stream()
    x = memory.allocate(1 << 16)
    with pytest.raises(InputError, match=r"a batch of 4 does not fit \(CUDA out of memory\); use a smaller"):
        engine.bind_device(x, x, x, 4, stream).enqueue(stream)


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this PyTorch has CUDA")
def test_a_pytorch_without_cuda_says_so(folder):
    with pytest.raises(DeviceUnavailableError, match="built without CUDA; run on this machine with `device=cpu`"):
        TorchDeviceEngine(folder)
