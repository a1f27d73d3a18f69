"""ONNX Runtime on the chain's own buffers, with its CPU provider in the device's place."""

import logging

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from diffusion.samplers import make_table
from runtime.chain.device import DeviceChain
from runtime.chain.host import HostChain
from runtime.engines.onnx_device import OnnxDeviceEngine
from runtime.engines.onnx_runtime import OnnxRuntimeEngine
from tests.gaussian import GaussianNetwork
from tests.runtime.engines.shared_device import kernels, memory

__all__ = ["kernels", "memory"]  # fixtures

PROCESS = Process(SampleShape(2, 4, 4), NoiseSchedule.make("linear", 40), variance_type="learned_range")


@pytest.fixture
def file(tmp_path):
    return GaussianNetwork(PROCESS, 0.1, 0.4).save_onnx(tmp_path / "unet.onnx")


def test_a_chain_has_the_bits_of_the_host(file, kernels, memory, caplog):
    engine = OnnxDeviceEngine(file, memory=memory, device="cpu")
    table = make_table(PROCESS, num_steps=8)
    with caplog.at_level(logging.WARNING):
        chain = DeviceChain(engine, table, 3)
    assert chain.graph == "none"
    assert caplog.messages == ["no graph: this backend's call cannot be captured; launched one by one"]
    host = HostChain(OnnxRuntimeEngine(file), table, 3)
    for each in (chain, host):
        each.begin([4] * 3, range(3))
        each.run()
    np.testing.assert_array_equal(chain.x, host.x)


def test_one_call_from_the_host(file, memory):
    x = np.random.default_rng(0).normal(size=(2, 2, 4, 4)).astype(np.float32)
    found, expected = (np.zeros((2, 4, 4, 4), np.float32) for _ in range(2))
    t = np.array([3, 39], np.float32)
    OnnxDeviceEngine(file, memory=memory, device="cpu").bind(x, t, found)()
    OnnxRuntimeEngine(file).bind(x, t, expected)()
    np.testing.assert_array_equal(found, expected)


def test_what_onnx_runtime_says_is_passed_on(file, memory):
    engine = OnnxDeviceEngine(file, memory=memory, device="cpu")
    assert engine.batch_range() == (1, None)
    engine._x = type(engine._x)(engine._x.name, engine._x.element_type, (4, 2, 4, 4))
    assert engine.batch_range() == (4, 4)
    with pytest.raises(InputError, match="batch"):
        engine.bind_device(0, 0, 0, 3, 0)
