"""Class labels and guidance where PyTorch runs on a device, with its CPU in the device's place."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusion.conditions import Condition
from diffusion.samplers import make_table
from runtime.chain.device import DeviceChain
from runtime.chain.host import HostChain
from runtime.engines.torch_checkpoint import TorchEngine, load_checkpoint
from runtime.engines.torch_device import TorchDeviceEngine
from runtime.engines.verification import predict_with, relative_error
from runtime.formats.precision import PRECISIONS
from runtime.formats.train_record import TrainRecord
from tests.checkpoints import save_tiny_checkpoint
from tests.runtime.engines.shared_device import kernels, memory

__all__ = ["kernels", "memory"]  # fixtures

NETWORKS = {
    "plain": {},
    "scale and shift": {"unet": {"resnet_time_scale_shift": "scale_shift"}},
    "learned variance": {"variance_type": "learned_range", "channels": 3},
}
NULL = 4


def save(folder, **arguments):
    unet = {"num_class_embeds": NULL + 1, **arguments.pop("unet", {})}
    save_tiny_checkpoint(folder, num_train_timesteps=60, unet=unet, **arguments)
    label = Condition("y", "int64", classes=NULL, null=NULL)
    process = replace(load_checkpoint(folder).process, checkpoint_sha256=None, conditions=(label,))
    TrainRecord(process).write(folder)
    return folder


def states(chw, num):
    x = np.random.default_rng(0).normal(size=(num, *chw)).astype(np.float32)
    return x, np.linspace(59, 0, num).round().astype(np.float32)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_folded_and_guided_in_one_call_it_is_the_reference(tmp_path, memory, kind, precision):
    folder = save(tmp_path, **NETWORKS[kind])
    engine, reference = TorchDeviceEngine(folder, precision, memory=memory, device="cpu"), TorchEngine(folder)
    x, t = states(engine.process.sample.chw, 5)
    y, g = np.array([0, 3, 4, 1, 2]), np.array([1.0, 0.0, 1.25, 0.5, 1.0], np.float32)
    found, expected = predict_with(engine)(x, t, y, g), predict_with(reference)(x, t, y, g)
    tolerance = 1e-5 if precision == "fp32" else PRECISIONS[precision].tolerance
    assert max(relative_error(*pair) for pair in zip(found, expected, strict=True)) < tolerance
    other = predict_with(engine)(x, t, np.roll(y, 1), g)
    channels = engine.process.sample.channels  # the variance behind them is always the class's
    changed = [relative_error(*pair) > 1e-3 for pair in zip(other[:, :channels], found[:, :channels], strict=True)]
    assert changed == [True, False, True, True, True]  # without guidance the class does not matter


def test_both_ends_are_exact(tmp_path, memory):
    predict = predict_with(TorchDeviceEngine(save(tmp_path), "bf16", memory=memory, device="cpu"))
    x, t = states((1, 8, 8), 2)
    y, null = np.array([1, 3]), np.full(2, NULL)
    at = {scale: np.full(2, scale, np.float32) for scale in (0.0, 1.0, 1.0078125, 2.5)}
    of_null = predict(x, t, null, at[1.0])
    for scale in at.values():
        np.testing.assert_array_equal(predict(x, t, null, scale), of_null)
    np.testing.assert_array_equal(predict(x, t, y, at[0.0]), of_null)
    assert not np.array_equal(predict(x, t, y, at[1.0]), predict(x, t, y, at[2.5]))


def test_embeddings_stay_in_float32_in_a_network_that_does_not(tmp_path, memory):
    engine = TorchDeviceEngine(save(tmp_path), "bf16", memory=memory, device="cpu")
    network = engine._run.network.network.unet
    assert {tensor.dtype for tensor in network.time_proj.buffers()} == {torch.float32}
    assert network.conv_in.weight.dtype == torch.bfloat16


def test_a_chain_on_the_device_gives_what_the_host_gives(tmp_path, kernels, memory):
    folder = save(tmp_path)
    engine, reference = TorchDeviceEngine(folder, memory=memory, device="cpu"), TorchEngine(folder)
    table = make_table(engine.process, num_steps=10)
    chain, host = DeviceChain(engine, table, 3), HostChain(reference, table, 3)
    given = (np.array([0, NULL]), np.array([2.0, 1.0], np.float32))
    for each in (chain, host):
        each.begin([3, 3], [0, 1], conditions=given)
        each.run()
    assert relative_error(chain.x[:2], host.x[:2]) < 1e-5
