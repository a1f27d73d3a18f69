"""The real kernels on the device in software against the step of the CPU and the noise of NumPy, bit for bit."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.gpu_check import noise_bits, step_bits
from benchmarks.gpu_check.context import StageContext
from benchmarks.gpu_check.device_arrays import DeviceArrays, differing_elements
from diffusion.normal import draw_number
from tests.kernels.random_steps import random_buffers, random_table
from tests.runtime.device.host_network import rounded
from tests.runtime.device.software_device import SoftwareMemory, software_device


@pytest.fixture
def context(request, monkeypatch, tmp_path):
    """As the stages of `make gpu-check` have it, on the device in software."""
    with software_device(request.node.nodeid, monkeypatch) as kernels:
        context = StageContext(tmp_path, lambda findings: None)
        context.kernels, context.memory = kernels, SoftwareMemory(kernels)
        context.memory.resize(1 << 28)
        yield context


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


# One block a sample, whole eights and not; two blocks of each.
@pytest.mark.parametrize("shape", [(3, 1, 4, 6), (3, 1, 5, 7), (2, 2, 12, 12), (2, 1, 17, 17)])
def test_every_kind_of_step(context, shape):
    step_bits.run(context, (shape,))
    assert context.failed_checks == []


def test_blocks_of_every_size(context):
    """From 264 blocks on they have more threads than the fewest."""
    kind = step_bits.StepKind(1, True, False, 1.0, True, "float16", True)
    for shape in ((100, 1, 15, 40), (132, 1, 20, 36), (270, 1, 1, 3)):
        assert step_bits.differences(context, kind, shape) == []


@pytest.mark.parametrize("prediction_type", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("learned", "row"), [(False, 0), (True, step_bits.NUM_ROWS - 1)])
def test_a_variance_that_no_row_reads_is_checked_too(context, prediction_type, learned, row):
    """The table is not a learned one, or the row adds no noise: x' is finite, and the sample is broken all the same."""
    kind = step_bits.StepKind(0, learned, False, 1.0, True, prediction_type, False)
    state = step_bits.random_state(kind, (3, 2, 4, 4), seed=1)
    state["prediction"][1, 3, 2, 1] = np.uint16(0x7FC0) if prediction_type == "bfloat16" else np.nan
    state["row"][:] = row
    assert step_bits._differences(context, kind, state, step_bits.random_table(1)) == []
    np.testing.assert_array_equal(state["flag"], [0, row + 1, 0])
    assert np.isfinite(state["x"]).all()


BUFFERS = ("x", "prediction", "h1", "h2", "x_start", "next_input")


@pytest.mark.parametrize("odd", BUFFERS)
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_one_buffer_alone_may_begin_anywhere(context, odd, kind):
    coefficients, timesteps = random_table()
    state = random_buffers((2, 1, 4, 6), kind)
    arrays = {**state, "coefficients": coefficients, "timesteps": timesteps, "arrivals": np.zeros(2, np.uint32)}
    options = {"histories": 2, "learned": False, "h2_is_x_start": False, "clip": 1.0}
    with (
        DeviceArrays(context.memory, {name: array.copy() for name, array in arrays.items() if name != odd}) as device,
        DeviceArrays(context.memory, {odd: arrays[odd].copy()}, offset_bytes=arrays[odd].itemsize) as moved,
    ):
        step = context.kernels.CudaStep(
            **device.addresses,
            **moved.addresses,
            **options,
            num_rows=len(timesteps),
            num_samples=2,
            num_elements=24,
            prediction_elements=24,
            prediction_type=kind,
            t_is_int64=False,
        )
        host = context.kernels.HostStep(coefficients, timesteps, threads=1, **options, **state)
        for _ in range(3):
            step.launch(device.stream)
            host.run()
        context.memory.synchronize(device.stream)
        for name, expected in state.items():
            found = (moved if name == odd else device).read(name)
            assert differing_elements(found, expected) == 0, name


@pytest.mark.parametrize(("num", "elements"), [(5, 35), (2, 1), (3, 1024), (1, 4099), (300, 8)])
def test_normals(context, num, elements):
    rng = np.random.default_rng(num)
    seeds, indices = (rng.integers(0, 2**64, num, dtype=np.uint64) for _ in range(2))
    draws = rng.integers(0, 2**28, num, dtype=np.uint32)
    assert noise_bits.differing_normals(context, seeds, indices, draws, elements) == 0


def test_more_samples_than_a_grid_has_rows(context):
    """65,535 blocks fit into its second dimension; the others lie in the third."""
    num = 65_541
    draws = np.full(num, draw_number(None), np.uint32)
    assert noise_bits.differing_normals(context, np.full(num, 3), np.arange(num), draws, 1) == 0


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


def special_values():
    """Every exponent, ties of both 16-bit types, their limits, infinities and NaN."""
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 2**32, 3000, dtype=np.uint32)
    ties = (rng.integers(0, 2**16, 3000, dtype=np.uint32) << np.uint32(16)) | np.uint32(0x8000)
    half_ties = (rng.integers(0, 2**19, 3000, dtype=np.uint32) << np.uint32(13)) | np.uint32(0x1000)
    few = np.array([0, -0.0, 65504, 65519.996, 65520, -65536, 5.9604645e-08, 2.9802322e-08, 3e-08, np.inf, np.nan])
    return np.concatenate([bits.view(np.float32), ties.view(np.float32), half_ties.view(np.float32), few], dtype="f4")


@pytest.mark.parametrize("out_type", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("offset", [0, 4])
def test_conversions(context, out_type, offset):
    values = special_values()
    with np.errstate(over="ignore"):
        expected = rounded(values, out_type)
    expected[np.isnan(values)] = 0x7FC0 if out_type == "bfloat16" else np.nan
    arrays = {"x": values, "out": np.zeros_like(expected)}
    with DeviceArrays(context.memory, arrays, offset_bytes=offset) as device:
        for count in (1, 8, 13, len(values)):
            context.kernels.cuda_convert_launch(
                **device.addresses, out_type=out_type, num_elements=count, stream=device.stream
            )
            found = device.read("out")
            assert differing_elements(found[:count], expected[:count]) == 0
        assert differing_elements(found[count:], arrays["out"][count:]) == 0


def test_every_number_of_16_bits_is_read(context):
    coefficients, timesteps = random_table()
    coefficients[:] = 0
    coefficients[:, 3] = 1.0  # x' = the prediction
    for kind, every in (("float16", np.float16), ("bfloat16", np.uint16)):
        state = random_buffers((1, 1, 128, 128), kind)
        state["prediction"] = np.arange(0, 2**16, 4, dtype=np.uint16).view(every).reshape(1, 1, 128, 128)
        state["x"][:] = 0
        step_kind = SimpleNamespace(
            histories=0, learned=False, h2_is_x_start=False, clip=np.inf, prediction_type=kind, t_is_int64=False,
            aligned=True,
        )  # fmt: skip
        assert step_bits._differences(context, step_kind, state, (coefficients, timesteps)) == []


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
