"""The step on the device has the bits of the C++ step: every kind of table, type and shape."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.device.device_arrays import DeviceArrays, differing_elements
from tests.gpu.step_kinds import (
    NUM_ROWS,
    PREDICTION_TYPES,
    StepKind,
    differences,
    every_kind,
    one_of_each_kernel,
    random_state,
)
from tests.kernels.random_steps import random_buffers, random_table
from tests.runtime.device.host_network import rounded

# One block a sample, whole eights and not; two blocks of each; on a GPU also more samples than multiprocessors.
SMALL_SHAPES = ((3, 1, 4, 6), (3, 1, 5, 7), (2, 2, 12, 12), (2, 1, 17, 17))
SHAPES = (*SMALL_SHAPES, (3, 3, 8, 8), (2, 3, 64, 64), (200, 1, 4, 4), (5, 3, 32, 32))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("histories", [0, 1, 2])
def test_every_kind_of_step(machine, histories, prediction_type):
    problems = {}
    for kind in every_kind():
        if (kind.histories, kind.prediction_type) == (histories, prediction_type):
            for seed, shape in enumerate(SMALL_SHAPES if machine.is_software else SHAPES):
                found = differences(machine, kind, random_state(kind, shape, seed))
                if found:
                    problems[kind, shape] = found
    assert not problems


def test_the_kinds_are_all_that_the_compiled_code_distinguishes():
    for name, values in {
        "histories": {0, 1, 2}, "learned": {False, True}, "h2_is_x_start": {False, True}, "clip": {1.0, np.inf},
        "prediction_type": set(PREDICTION_TYPES), "t_is_int64": {False, True}, "aligned": {False, True},
    }.items():  # fmt: skip
        assert {getattr(kind, name) for kind in every_kind()} == values
    kernels = {(kind.histories, kind.learned, kind.prediction_type) for kind in one_of_each_kernel()}
    assert len(kernels) == 18
    assert any(not kind.aligned for kind in one_of_each_kernel())


def test_blocks_of_every_size(machine):
    """From 264 blocks on they have more threads than the fewest."""
    kind = StepKind(1, True, False, 1.0, True, "float16", True)
    for shape in ((100, 1, 15, 40), (132, 1, 20, 36), (270, 1, 1, 3)):
        assert differences(machine, kind, random_state(kind, shape)) == []


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_broken_predictions_are_flagged_and_idle_samples_left_alone(machine, prediction_type):
    """NaN and infinity, samples at different rows, and samples that are idle."""
    kind = StepKind(1, True, False, 1.0, True, prediction_type, False)
    state = random_state(kind, (7, 2, 8, 8), seed=11)
    state["prediction"][1, 3, 2, 5] = np.uint16(0x7FC0) if prediction_type == "bfloat16" else np.nan
    state["prediction"][4, 0, 0, 0] = np.uint16(0x7F80) if prediction_type == "bfloat16" else np.inf
    state["row"][:] = [0, 0, -1, NUM_ROWS, 1, NUM_ROWS - 1, 2]
    before = state["x"].copy()
    assert differences(machine, kind, state) == []
    assert state["flag"].tolist() == [0, 1, 0, 0, 2, 0, 0]
    np.testing.assert_array_equal(state["x"][2:4], before[2:4])


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize(("learned", "row"), [(False, 0), (True, NUM_ROWS - 1)])
def test_a_variance_that_no_row_reads_is_checked_too(machine, prediction_type, learned, row):
    """The table is not a learned one, or the row adds no noise: x' is finite, and the sample is broken all the same."""
    kind = StepKind(0, learned, False, 1.0, True, prediction_type, False)
    state = random_state(kind, (3, 2, 4, 4), seed=1)
    state["prediction"][1, 3, 2, 1] = np.uint16(0x7FC0) if prediction_type == "bfloat16" else np.nan
    state["row"][:] = row
    assert differences(machine, kind, state) == []
    np.testing.assert_array_equal(state["flag"], [0, row + 1, 0])
    assert np.isfinite(state["x"]).all()


@pytest.mark.parametrize("odd", ["x", "prediction", "h1", "h2", "x_start", "next_input"])
@pytest.mark.parametrize("prediction_type", ["float32", "bfloat16"])
def test_one_buffer_alone_may_begin_anywhere(machine, odd, prediction_type):
    kind = StepKind(2, False, False, 1.0, False, prediction_type, False)
    coefficients, timesteps = random_table()
    state = random_state(kind, (2, 1, 4, 6))
    arrays = {**state, "coefficients": coefficients, "timesteps": timesteps, "arrivals": np.zeros(2, np.uint32)}
    with (
        DeviceArrays(machine.memory, {name: array.copy() for name, array in arrays.items() if name != odd}) as device,
        DeviceArrays(machine.memory, {odd: arrays[odd].copy()}, offset_bytes=arrays[odd].itemsize) as moved,
    ):
        step = machine.kernels.CudaStep(
            **device.addresses,
            **moved.addresses,
            **kind.table_options,
            num_rows=len(timesteps),
            num_samples=2,
            num_elements=24,
            prediction_elements=24,
            prediction_type=prediction_type,
            t_is_int64=False,
        )
        host = machine.kernels.HostStep(coefficients, timesteps, threads=1, **kind.table_options, **state)
        for _ in range(3):
            step.launch(device.stream)
            host.run()
        machine.memory.synchronize(device.stream)
        for name, expected in state.items():
            found = (moved if name == odd else device).read(name)
            assert differing_elements(found, expected) == 0, name


def special_values():
    """Every exponent, ties of both 16-bit types, their limits, infinities and NaN."""
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 2**32, 3000, dtype=np.uint32)
    ties = (rng.integers(0, 2**16, 3000, dtype=np.uint32) << np.uint32(16)) | np.uint32(0x8000)
    half_ties = (rng.integers(0, 2**19, 3000, dtype=np.uint32) << np.uint32(13)) | np.uint32(0x1000)
    few = np.array([0, -0.0, 65504, 65519.996, 65520, -65536, 5.9604645e-08, 2.9802322e-08, 3e-08, np.inf, np.nan])
    return np.concatenate([bits.view(np.float32), ties.view(np.float32), half_ties.view(np.float32), few], dtype="f4")


@pytest.mark.parametrize("out_type", PREDICTION_TYPES)
@pytest.mark.parametrize("offset", [0, 4])
def test_conversions(machine, out_type, offset):
    values = special_values()
    with np.errstate(over="ignore"):
        expected = rounded(values, out_type)
    expected[np.isnan(values)] = 0x7FC0 if out_type == "bfloat16" else np.nan
    arrays = {"x": values, "out": np.zeros_like(expected)}
    with DeviceArrays(machine.memory, arrays, offset_bytes=offset) as device:
        for count in (1, 8, 13, len(values)):
            machine.kernels.cuda_convert_launch(
                **device.addresses, out_type=out_type, num_elements=count, stream=device.stream
            )
            found = device.read("out")
            assert differing_elements(found[:count], expected[:count]) == 0
        assert differing_elements(found[count:], arrays["out"][count:]) == 0


@pytest.mark.parametrize(("prediction_type", "every"), [("float16", np.float16), ("bfloat16", np.uint16)])
def test_every_number_of_16_bits_is_read(machine, prediction_type, every):
    coefficients, timesteps = random_table()
    coefficients[:] = 0
    coefficients[:, 3] = 1.0  # x' = the prediction
    state = random_buffers((1, 1, 128, 128), prediction_type)
    state["prediction"] = np.arange(0, 2**16, 4, dtype=np.uint16).view(every).reshape(1, 1, 128, 128)
    state["x"][:] = 0
    kind = StepKind(0, False, False, np.inf, False, prediction_type, False)
    assert differences(machine, kind, state, (coefficients, timesteps)) == []


@pytest.mark.parametrize("changed", ["x", "h1", "x_start", "next_input", "row", "t", "flag"])
@pytest.mark.parametrize("machine", ["software"], indirect=True)
def test_a_step_that_changes_anything_else_is_seen(machine, monkeypatch, changed):
    honest, memory = machine.kernels.CudaStep, machine.memory

    def planted_step(**arguments):
        step = honest(**arguments)

        def launch(stream):
            step.launch(stream)
            word = np.empty(1, np.uint16)
            memory.to_host(word, arguments[changed], stream)
            memory.to_device(arguments[changed], word ^ 1, stream)

        return SimpleNamespace(launch=launch)

    monkeypatch.setattr(machine.kernels, "CudaStep", planted_step, raising=False)
    kind = StepKind(2, False, True, 1.0, False, "float16", False)
    assert f"1 of {changed} after row 0" in differences(machine, kind, random_state(kind, (2, 1, 4, 4)))


@pytest.mark.parametrize("machine", ["software"], indirect=True)
def test_arrays_come_back_as_they_went_also_from_odd_places(machine):
    array = np.arange(5, dtype=np.float32)
    with DeviceArrays(machine.memory, {"a": array}, offset_bytes=8) as arrays:
        assert arrays.addresses["a"] % 16 == 8
        np.testing.assert_array_equal(arrays.read("a"), array)
        arrays.write("a", array + 1)
        np.testing.assert_array_equal(arrays.read("a"), array + 1)
