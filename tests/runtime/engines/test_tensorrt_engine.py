"""The class that runs plans, on modules that stand for TensorRT and whose memory is the host's."""

import gc
import re
from dataclasses import replace

import numpy as np
import pytest

from commands.errors import DeviceUnavailableError
from diffusion.conditions import Condition
from diffusion.errors import InputError
from diffusion.process import Process, SampleShape
from diffusion.samplers import make_table
from runtime.chain.host import HostChain
from runtime.engines.onnx_runtime import OnnxRuntimeEngine
from runtime.engines.tensorrt_call import TensorRtError
from runtime.engines.tensorrt_engine import TensorRtEngine
from runtime.engines.verification import relative_error
from runtime.formats.flavor import FLAVORS
from runtime.formats.precision import PRECISIONS
from tests.gaussian import GaussianNetwork
from tests.runtime.engines.host_memory import HostMemory
from tests.runtime.engines.plan_files import IO_TYPES, NETWORK, PROCESS, VERSIONS
from tests.runtime.engines.tensorrt_fake import CALLS, WORKSPACE_PER_SAMPLE, bound, make_module


def states(num):
    rng = np.random.default_rng(0)
    return rng.standard_normal((num, 2, 4, 6)).astype(np.float32), np.arange(num, dtype=np.float32)


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_lean", "tensorrt_rtx"])
@pytest.mark.parametrize(
    ("precision", "t_type"), [("fp32", "int64"), ("fp32", "float32"), ("fp16", "int64"), ("bf16", "int64")]
)
def test_predictions_in_the_buffers_of_the_host(accepted, module, precision, t_type):
    engine = TensorRtEngine(accepted(module, precision, t_type), memory=HostMemory())
    assert (engine.precision, engine.io_type, engine.t_type) == (precision, IO_TYPES[precision], t_type)
    assert engine.process == PROCESS
    assert engine.batch_range() == (1, 64)
    for num in (3, 1, 64):
        x, t = states(num)
        prediction = np.full_like(x, np.nan)
        call = engine.bind(x, t, prediction)
        for _ in range(2):
            call()
            error = relative_error(prediction, NETWORK(x.astype(np.float64), t))
            assert error < PRECISIONS[precision].tolerance / 5
            x += 1  # the buffers themselves are read, at every call
            t[:] = t[::-1].copy()


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_host_chain_gives_the_bits_of_the_onnx_engine(tmp_path, accepted, module):
    """A chain in float32: every operation of this network rounds once, wherever it runs."""
    reference = OnnxRuntimeEngine(NETWORK.save_onnx(tmp_path / "unet.onnx"), threads=1)
    engine = TensorRtEngine(accepted(module), memory=HostMemory())
    ends = []
    for each in (reference, engine):
        chain = HostChain(each, make_table(PROCESS, "ddpm", 20), 5, threads=1)
        chain.begin([7] * 5, list(range(5)))
        chain.run()
        ends.append(chain.x.copy())
    np.testing.assert_array_equal(*ends)


def test_a_call_reads_and_writes_the_given_addresses_and_waits_for_nothing(accepted):
    engine = TensorRtEngine(accepted(precision="fp16"), memory=HostMemory())
    call, x, t, prediction = bound(engine, 3)
    x[:] = states(3)[0]
    engine.memory.synchronized.clear()
    for _ in range(3):
        call.enqueue(9)
        np.testing.assert_array_equal(prediction, NETWORK(x.astype(np.float32), t).astype(np.float16))
        x += 1
    assert engine.memory.synchronized == []


def test_two_calls_have_state_of_their_own(accepted):
    engine = TensorRtEngine(accepted(), memory=HostMemory())
    first, second = bound(engine, 2), bound(engine, 2, stream=8)
    for place, (_, x, _, _) in enumerate((first, second)):
        x[:] = place + 1
    for call, *_ in (first, second):
        call.enqueue(9)
    for _, x, t, prediction in (first, second):
        np.testing.assert_array_equal(prediction, NETWORK(x, t))


def test_activations_are_ours_and_are_given_back(accepted):
    engine = TensorRtEngine(accepted(), memory=HostMemory())
    assert engine.call_bytes(5) == 5 * WORKSPACE_PER_SAMPLE
    assert CALLS.count("create_execution_context") == 1
    assert not engine.memory.blocks  # not taken yet
    call, *_ = bound(engine, 5)
    assert CALLS.count("create_execution_context") == 1  # the one that was asked
    assert len(engine.memory.blocks) == 4
    call.enqueue(9)
    assert engine.bind_device(256, 512, 768, 5, 8)._context is not call._context
    del call, _
    gc.collect()
    assert len(engine.memory.blocks) == 3
    x, t = states(4)
    host_call = engine.bind(x, t, x.copy())
    memory = engine.memory
    assert (len(memory.blocks), len(memory.streams)) == (3 + 4, 1)
    del engine
    gc.collect()
    host_call()  # on the engine's stream, which is still there
    assert len(memory.streams) == 1
    del host_call
    gc.collect()
    assert (len(memory.blocks), len(memory.streams)) == (3, 0)


class Labeled:
    """A network with a class label and a scale."""

    process = replace(
        PROCESS, conditions=(Condition("y", "int64", classes=4, null=4), Condition("guidance", "float32"))
    )

    def __call__(self, x, t, y, guidance):
        return NETWORK(x, t) + (guidance * y).astype(np.float32).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_conditions_are_inputs_of_their_own_types(accepted, precision):
    network = Labeled()
    engine = TensorRtEngine(accepted(precision=precision, network=network, plan=network), memory=HostMemory())
    assert engine.process.conditions == network.process.conditions
    for num in (5, 1):
        x, t = states(num)
        y, guidance = np.arange(num) % 5, np.linspace(0.5, 2, num, dtype=np.float32)
        prediction = np.full_like(x, np.nan)
        call = engine.bind(x, t, prediction, (y, guidance))
        for _ in range(2):
            call()
            expected = network(x.astype(np.float64), t, y, guidance)
            assert relative_error(prediction, expected) < PRECISIONS[precision].tolerance
            y[:] = y[::-1].copy()


def test_a_plan_with_other_conditions_than_its_process_is_refused(accepted):
    network = Labeled()
    plan = accepted(network=network, plan=network)
    tensors = plan.plan.tensors
    for other in (tensors.conditions[:1], tensors.conditions[::-1]):
        described = replace(plan.plan, tensors=replace(tensors, conditions=other))
        wrong = replace(plan, sidecar=replace(plan.sidecar, engine=described))
        with pytest.raises(InputError, match="holds conditions .*, but its sidecar says"):
            TensorRtEngine(wrong, memory=HostMemory())


PROFILES = [{"min": 1, "opt": 1, "max": 4}, {"min": 2, "opt": 4, "max": 8}, {"min": 32, "opt": 64, "max": 64}]


@pytest.mark.parametrize(("num", "profile"), [(1, 0), (2, 0), (3, 1), (4, 1), (8, 1), (32, 2), (64, 2)])
def test_the_profile_that_contains_the_batch(accepted, num, profile):
    description = accepted(batch_profiles=PROFILES)
    assert description.plan.profile_for(num, description.path) == profile
    engine = TensorRtEngine(description, memory=HostMemory())
    call, x, t, prediction = bound(engine, num)
    x[:] = 1
    call.enqueue(9)
    np.testing.assert_array_equal(prediction, NETWORK(x, t % 100))
    assert ("set_optimization_profile_async" in CALLS) == (profile != 0)
    assert bool(engine.memory.synchronized) == (profile != 0)


@pytest.mark.parametrize(("num", "fitting"), [(9, 8), (31, 8), (65, 64), (1000, 64)])
def test_no_profile_contains_the_batch(accepted, num, fitting):
    engine = TensorRtEngine(accepted(batch_profiles=PROFILES), memory=HostMemory())
    assert engine.batch_range() == (1, 64)
    expected = (
        f"unet.plan: takes batches of 1 to 4, 2 to 8, 32 to 64, found {num}; give `batch_size={fitting}`, or build it "
        f"with `python -m export.to_trt --min-batch 1 --max-batch {num}`"
    )
    x, t = states(num)
    for ask in (lambda: bound(engine, num), lambda: engine.call_bytes(num), lambda: engine.bind(x, t, x.copy())):
        with pytest.raises(InputError, match=re.escape(expected)):
            ask()


def test_a_plan_of_one_batch(accepted):
    engine = TensorRtEngine(accepted(batch_profiles=[{"min": 8, "opt": 8, "max": 8}]), memory=HostMemory())
    assert engine.batch_range() == (8, 8)
    bound(engine, 8)[0].enqueue(9)
    with pytest.raises(InputError, match="takes batches of 8, found 7; give `batch_size=8`"):
        bound(engine, 7)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("create_execution_context", "TensorRT made no execution context"),
        ("set_input_shape", "TensorRT refused x [8, 2, 4, 6]"),
        ("update_device_memory_size_for_shapes", "TensorRT could not size its activations"),
        ("set_tensor_address", "TensorRT refused the address of x"),
        ("set_optimization_profile_async", "TensorRT refused profile 1"),
        ("execute_async_v3", "TensorRT could not start it"),
    ],
)
@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_what_fails_carries_tensorrt_own_words(accepted, module, function, words):
    engine = TensorRtEngine(accepted(module, broken={function}, batch_profiles=PROFILES), memory=HostMemory())
    expected = f"unet.plan, a batch of 8: {words} ({function} fails: in test.cpp)"
    with pytest.raises(TensorRtError, match=re.escape(expected)) as caught:
        bound(engine, 8)[0].enqueue(9)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError)
    assert isinstance(caught.value, RuntimeError)
    del caught  # its traceback holds the call
    gc.collect()
    assert len(engine.memory.blocks) == 3  # the buffers of the test


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_lean", "tensorrt_rtx"])
def test_tensorrt_that_does_not_start(accepted, module):
    with pytest.raises(DeviceUnavailableError, match=r"does not start \(.*Runtime fails: in test.cpp"):
        TensorRtEngine(accepted(module, broken={"Runtime"}), memory=HostMemory())
    assert "deserialize_cuda_engine" not in CALLS


@pytest.mark.parametrize(
    ("other", "fields", "message"),
    [
        (GaussianNetwork(Process(SampleShape(2, 4, 8), PROCESS.schedule), 0, 1), {}, "x as .*FLOAT [-1, 2, 4, 8]"),
        (NETWORK, {"batch_profiles": PROFILES}, "3 tensors and 3 profiles, but its sidecar says 3 and 1"),
    ],
)
def test_a_plan_that_is_not_what_its_sidecar_says(accepted, other, fields, message):
    description = accepted(network=other, **fields)
    if fields:
        plan = replace(description.plan, profiles=description.plan.profiles[:1])
        description = replace(description, sidecar=replace(description.sidecar, engine=plan))
    with pytest.raises(InputError, match=re.escape(message).replace(r"\.\*", ".*") + ".*export.to_trt"):
        TensorRtEngine(description, memory=HostMemory())


def test_types_that_are_not_what_the_sidecar_says(accepted):
    description = accepted(precision="fp16")
    description = replace(description, module=make_module("tensorrt_rtx", VERSIONS["tensorrt-rtx"], NETWORK, "float32"))
    with pytest.raises(InputError, match=r"holds x as .*FLOAT \[-1, 2, 4, 6\], but its sidecar says float16 \['N', 2"):
        TensorRtEngine(description, memory=HostMemory())


def test_an_address_that_tensorrt_must_not_get(accepted):
    engine = TensorRtEngine(accepted(), memory=HostMemory())
    with pytest.raises(ValueError, match="t lies at 0x1010, expected a multiple of 256"):
        engine.bind_device(4096, 4096 + 16, 8192, 2, 9)


def test_what_flavors_there_are():
    assert {name: flavor.modules(True) for name, flavor in FLAVORS.items()} == {
        "tensorrt": ("tensorrt", "tensorrt_lean"),
        "tensorrt-rtx": ("tensorrt_rtx",),
    }
