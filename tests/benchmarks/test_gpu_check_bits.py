"""The stages that compare bits, run on the device in software: they pass there, and they see what differs."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.gpu_check import chain_bits, noise_bits, sanitized_work, step_bits
from benchmarks.gpu_check.device_arrays import DeviceArrays, differing_elements
from benchmarks.gpu_check.sanitizer_stage import DONE
from diffusion.step_table import COLUMNS
from tests.benchmarks.gpu_check_device import device_context, let_pytorch_in


@pytest.fixture
def device(request, monkeypatch, tmp_path):
    yield from device_context(request, monkeypatch, tmp_path)


def everything_is_given_back(context):
    return not any(context.kernels.state(name) for name in ("allocations", "streams", "executables"))


def test_noise(device):
    context, findings = device
    noise_bits.run(context, num_many=100_000)
    assert context.failed_checks == []
    assert len(findings["checks"]) == 1 + len(noise_bits.SHAPES)
    assert everything_is_given_back(context)


def test_one_other_bit_of_the_noise_is_seen(device, monkeypatch):
    context, findings = device
    honest = context.kernels.cuda_normal_launch

    def launch(*, out, stream, **arguments):
        honest(out=out, stream=stream, **arguments)
        context.kernels.software_write(out + 4, stream)

    monkeypatch.setattr(context.kernels, "cuda_normal_launch", launch)
    noise_bits.run(context, num_many=1000)
    assert context.failed_checks[0] == "1000 normals of one sample"
    assert findings["checks"][0]["found"] == "1 differ"


def test_every_kind_of_step_is_compared(device):
    context, findings = device
    step_bits.run(context, shapes=((3, 2, 4, 4), (2, 1, 5, 7)))
    assert context.failed_checks == []
    kinds = list(step_bits.every_kind())
    assert findings["figures"]["steps_compared"] == len(kinds) * 2 * step_bits.NUM_ROWS
    for name, values in {
        "histories": {0, 1, 2}, "learned": {False, True}, "h2_is_x_start": {False, True}, "clip": {1.0, np.inf},
        "prediction_type": {"float32", "float16", "bfloat16"}, "t_is_int64": {False, True}, "aligned": {False, True},
    }.items():  # fmt: skip
        assert {getattr(kind, name) for kind in kinds} == values
    table, _ = step_bits.random_table(0)
    assert table[:-1, COLUMNS.index("s")].all()
    assert table[-1, COLUMNS.index("s")] == 0
    assert everything_is_given_back(context)


@pytest.mark.parametrize("changed", ["x", "h1", "x_start", "next_input", "row", "t", "flag"])
def test_a_step_that_changes_anything_else_is_seen(device, monkeypatch, changed):
    context, _ = device
    honest, memory = context.kernels.CudaStep, context.memory

    def planted_step(**arguments):
        step = honest(**arguments)

        def launch(stream):
            step.launch(stream)
            word = np.empty(1, np.uint16)
            memory.to_host(word, arguments[changed], stream)
            memory.to_device(arguments[changed], word ^ 1, stream)

        return SimpleNamespace(launch=launch)

    monkeypatch.setattr(context.kernels, "CudaStep", planted_step)
    kind = step_bits.StepKind(2, False, True, 1.0, False, "float16", False)
    problems = step_bits.differences(context, kind, (2, 1, 4, 4))
    assert problems
    assert f"1 of {changed} after row 0" in problems


def test_flags_and_idle_samples_are_compared(device, monkeypatch):
    context, _ = device
    assert step_bits.broken_sample_differences(context) == []
    flags = []
    original = step_bits._differences

    def differences(context, kind, state, table):
        result = original(context, kind, state, table)
        flags.append(state["flag"].copy())
        return result

    monkeypatch.setattr(step_bits, "_differences", differences)
    step_bits.broken_sample_differences(context)
    assert [flag.tolist() for flag in flags] == [[0, 1, 0, 0, 2, 0, 0]] * 3


@pytest.mark.parametrize("run", [chain_bits.echo_problems, chain_bits.idle_sample_problems])
def test_chains(device, run):
    context, _ = device
    assert run(context) == []
    assert everything_is_given_back(context)


def test_the_closed_form_network_runs_in_pytorch_as_in_numpy(device):
    context, _ = device
    let_pytorch_in(context)
    assert chain_bits.gaussian_problems(context, device="cpu") == []
    assert everything_is_given_back(context)


def test_a_chain_that_falls_back_is_a_failure(device):
    context, _ = device
    context.kernels.software_refuse("cudaGraphAddNode")
    problems = chain_bits.echo_problems(context)
    assert "ddpm float32: while was asked for, step is used" in problems[0]


def test_a_chain_with_another_state_is_a_failure(device, monkeypatch):
    context, _ = device
    honest = chain_bits.run_on_host

    def run_on_host(*arguments):
        state = honest(*arguments)
        state.x[1, 0, 2, 3] = np.nextafter(state.x[1, 0, 2, 3], np.float32(9))
        return state

    monkeypatch.setattr(chain_bits, "run_on_host", run_on_host)
    problems = chain_bits.echo_problems(context)
    assert problems[0] == "ddpm float32, while, 1 pieces: 1 of x differ"
    # Nine cases, three ways to launch, in one piece and in three.
    assert len(problems) == 9 * 3 * 2


@pytest.mark.parametrize("part", ["launches", "step", "while", "none"])
def test_what_runs_under_the_sanitizer(device, part, capsys):
    context, _ = device
    sanitized_work.run(context, part)
    assert capsys.readouterr().out.strip() == DONE
    assert everything_is_given_back(context)


def test_the_sanitizer_sees_every_compiled_step():
    kinds = sanitized_work._few_kinds()
    kernels = {(kind.histories, kind.learned, kind.prediction_type) for kind in kinds}
    assert len(kernels) == 18
    assert any(not kind.aligned for kind in kinds)


def test_equal_numbers_with_other_bits_differ_unless_they_are_no_numbers():
    zeros = np.array([0.0, 1.0, np.nan], np.float32)
    assert differing_elements(np.array([-0.0, 1.0, -np.nan], np.float32), zeros) == 1
    bfloat16 = np.array([0x7FC0, 0x7F80, 0x3F80], np.uint16)
    assert differing_elements(np.array([0x7FFF, 0x7F80, 0x3F81], np.uint16), bfloat16) == 1


def test_arrays_come_back_as_they_went_also_from_odd_places(device):
    context, _ = device
    array = np.arange(5, dtype=np.float32)
    with DeviceArrays(context.memory, {"a": array}, offset_bytes=8) as arrays:
        assert arrays.addresses["a"] % 16 == 8
        np.testing.assert_array_equal(arrays.read("a"), array)
        arrays.write("a", array + 1)
        np.testing.assert_array_equal(arrays.read("a"), array + 1)
