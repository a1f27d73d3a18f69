"""What the bindings of the real kernels do on the device in software; tests/gpu compares the kernels' bits there."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.device.device_arrays import DeviceArrays
from tests.gpu.software_machine import SoftwareMachine
from tests.kernels.random_steps import random_buffers, random_table
from tests.runtime.device.software_device import software_device


@pytest.fixture
def context(request, monkeypatch, tmp_path):
    with software_device(request.node.nodeid, monkeypatch) as kernels:
        yield SoftwareMachine(tmp_path, kernels)


def test_copies_are_over_when_they_return(context):
    """First of all: a copy that comes later writes into arrays that are gone."""
    memory, stream, array = context.memory, context.memory.make_stream(), np.arange(9, dtype=np.float32)
    address = memory.allocate(array.nbytes)
    memory.to_device(address, array, stream)
    assert context.kernels.state("pending") == 0
    found = np.zeros_like(array)
    memory.to_host(found, address, stream)
    assert context.kernels.state("pending") == 0
    np.testing.assert_array_equal(found, array)
    memory.free(address)
    memory.free_stream(stream)


def test_nothing_is_launched_for_nothing_and_too_much_is_refused(context):
    kernels, memory = context.kernels, context.memory
    stream = memory.make_stream()
    launched = kernels.state("cudaLaunchKernel")
    for num, elements in ((0, 5), (5, 0)):
        kernels.cuda_normal_launch(
            out=256, num_samples=num, num_elements=elements, seed=256, sample_index=256, draw=256, stream=stream
        )
    kernels.cuda_convert_launch(x=256, out=256, out_type="float16", num_elements=0, stream=stream)
    with pytest.raises(RuntimeError, match="CUDA launch failed: the batch is too large for one launch"):
        kernels.cuda_normal_launch(
            out=256, num_samples=1, num_elements=2**31, seed=256, sample_index=256, draw=256, stream=stream
        )
    arguments = {"num_rows": 1, "histories": 1, "learned": False, "h2_is_x_start": False, "clip": 1.0}
    needed = (
        "coefficients",
        "timesteps",
        "x",
        "prediction",
        "t",
        "row",
        "seed",
        "sample_index",
        "flag",
        "arrivals",
        "h1",
    )
    arguments |= dict.fromkeys(needed, 256) | {"t_is_int64": False}
    arguments |= {"prediction_type": "float32", "stream": stream}
    kernels.cuda_step_launch(**arguments, num_samples=0, num_elements=4, prediction_elements=4)
    with pytest.raises(RuntimeError, match="the batch is too large for one launch"):
        kernels.cuda_step_launch(**arguments, num_samples=2**32, num_elements=4, prediction_elements=4)
    assert kernels.state("cudaLaunchKernel") == launched
    empty, huge = (
        kernels.CudaStep(
            **{name: value for name, value in arguments.items() if name != "stream"},
            num_samples=num,
            num_elements=4,
            prediction_elements=4,
        )
        for num in (0, 2**32)
    )
    kernels.cuda_begin_capture(stream)
    network = kernels.cuda_end_capture(stream)
    for step, says in ((empty, "the batch is empty"), (huge, "too large for one launch")):
        with pytest.raises(RuntimeError, match=f"adding the step to a graph failed: .*{says}"):
            kernels.cuda_step_graph(network, step)
    kernels.cuda_graph_destroy(network)
    memory.free_stream(stream)


@pytest.fixture
def one_step(context):
    """The arguments of a step, and the arrays that they point to."""
    coefficients, timesteps = random_table()
    state = random_buffers((2, 1, 5, 7), "float16")
    arrays = {**state, "coefficients": coefficients, "timesteps": timesteps, "arrivals": np.zeros(2, np.uint32)}
    arguments = {
        **{"num_rows": 4, "histories": 2, "learned": False, "h2_is_x_start": False, "clip": 1.0},
        **{"num_samples": 2, "num_elements": 35, "prediction_elements": 35, "prediction_type": "float16"},
        "t_is_int64": False,
    }
    with DeviceArrays(context.memory, arrays) as device:
        yield SimpleNamespace(arguments=arguments, addresses=device.addresses, stream=device.stream)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"histories": 3}, "histories is not 0, 1 or 2"),
        ({"clip": 0.0}, "clip is not a positive number"),
        ({"prediction_elements": 36}, "prediction_elements is not num_elements"),
        ({"prediction_type": "int8"}, "prediction_type is 'int8'; expected float32, float16 or bfloat16"),
        ({"learned": True}, "prediction_elements is not num_elements, nor twice that"),
        *(({name: 0}, f"{name} is a null pointer") for name in ("x", "h1", "h2", "arrivals", "row", "seed")),
    ],
)
def test_arguments_are_checked_before_anything_is_launched(context, one_step, changes, says):
    with pytest.raises(ValueError, match=says):
        context.kernels.CudaStep(**(one_step.arguments | one_step.addresses | changes))


def test_launched_at_once_or_by_an_object_it_is_the_same_step(context, one_step):
    arguments = one_step.arguments | one_step.addresses
    context.kernels.cuda_step_launch(**arguments, stream=one_step.stream)
    context.kernels.CudaStep(**arguments).launch(one_step.stream)
    context.memory.synchronize(one_step.stream)
    rows = np.empty(2, np.int32)
    context.memory.to_host(rows, one_step.addresses["row"], one_step.stream)
    np.testing.assert_array_equal(rows, [2, 2])


def test_facts_events_copies_and_polls(context):
    kernels, memory = context.kernels, context.memory
    assert kernels.has_cuda_kernels()
    assert kernels.cuda_architectures() == ["software"]
    assert kernels.cuda_device_count() == 1
    assert kernels.cuda_device_facts(0)["runtime_cuda_version"] == 13000
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        kernels.cuda_set_device(1)
    sent = np.arange(6, dtype=np.float32)
    with DeviceArrays(memory, {"a": sent, "b": np.zeros_like(sent)}) as device:
        start, end = kernels.cuda_event_create(), kernels.cuda_event_create()
        kernels.cuda_event_record(start, device.stream)
        kernels.cuda_copy(device.addresses["b"], device.addresses["a"], sent.nbytes, device.stream)
        kernels.cuda_event_record(end, device.stream)
        assert not memory.is_done(device.stream)
        with pytest.raises(RuntimeError, match="device not ready"):
            kernels.cuda_event_elapsed_ms(start, end)
        kernels.cuda_event_synchronize(end)
        assert kernels.cuda_event_elapsed_ms(start, end) >= 0
        assert sum(1 for _ in itertools.takewhile(lambda _: not memory.is_done(device.stream), range(9))) < 9
        np.testing.assert_array_equal(device.read("b"), sent)
        for event in (start, end):
            kernels.cuda_event_destroy(event)
    with pytest.raises(MemoryError, match="cudaMalloc failed: out of memory"):
        kernels.cuda_allocate(1 << 40)
