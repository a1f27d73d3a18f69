"""The compiled step has the bits of `tests.kernels.numpy_step.ReferenceStep` in every buffer."""

import copy
import os
import threading
import warnings

import numpy as np
import pytest

from diffusion.step_table import COLUMNS
from runtime import _kernels
from tests.kernels.numpy_step import ReferenceStep
from tests.kernels.random_steps import assert_same_bits, random_buffers, random_table

every_isa = pytest.mark.parametrize("isa", _kernels.isa_levels())


def run_both(buffers, options, isa, num_steps, table=None, threads=0):
    """Run `num_steps` of both from the same state; return the buffers of each."""
    coefficients, timesteps = table or random_table()
    reference, compiled = copy.deepcopy(buffers), copy.deepcopy(buffers)
    expected = ReferenceStep(coefficients, timesteps, **options, **reference)
    actual = _kernels.HostStep(coefficients, timesteps, **options, **compiled, isa=isa, threads=threads)
    for _ in range(num_steps):
        expected.run()
        actual.run()
    return compiled, reference


def table_options(histories=0, learned=False, h2_is_x_start=False, clip=np.inf):
    return {"histories": histories, "learned": learned, "h2_is_x_start": h2_is_x_start, "clip": clip}


@every_isa
@pytest.mark.parametrize("prediction_type", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("histories", "h2_is_x_start"), [(0, False), (1, False), (2, False), (2, True)])
@pytest.mark.parametrize("learned", [False, True])
def test_every_kind_of_table(isa, prediction_type, histories, h2_is_x_start, learned):
    for shape, clip in (((3, 3, 5, 7), 1.0), ((2, 1, 1, 1), np.inf), ((2, 2, 32, 33), 0.5)):
        options = table_options(histories, learned, h2_is_x_start, clip)
        result = run_both(random_buffers(shape, prediction_type, wide=learned), options, isa, num_steps=5)
        assert_same_bits(*result, context=(shape, clip))


@every_isa
def test_samples_at_rows_of_their_own_and_idle_ones(isa):
    buffers = random_buffers((6, 3, 9, 11))
    buffers["row"][:] = [0, 3, -1, 4, 2, 99]
    compiled, reference = run_both(buffers, table_options(1, clip=1.0), isa, num_steps=2)
    assert_same_bits(compiled, reference)
    np.testing.assert_array_equal(compiled["row"], [2, 4, -1, 4, 4, 99])
    for name in ("x", "h1", "x_start", "next_input"):
        for idle in (2, 3, 5):
            np.testing.assert_array_equal(compiled[name][idle], buffers[name][idle])
    assert (compiled["t"][[2, 3, 5]] == -7).all()


@every_isa
def test_a_network_may_emit_a_variance_that_the_table_does_not_read(isa):
    buffers = random_buffers((2, 3, 5, 5), wide=True)
    assert_same_bits(*run_both(buffers, table_options(), isa, num_steps=4))
    buffers["prediction"][1, 5, 2, 2] = np.nan
    compiled, reference = run_both(buffers, table_options(), isa, num_steps=1)
    assert_same_bits(compiled, reference)
    np.testing.assert_array_equal(compiled["flag"], [0, 1])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads):
    buffers = random_buffers((5, 3, 200, 201))  # 603,000 elements: work for nine threads
    result = run_both(buffers, table_options(2, clip=1.0), "auto", num_steps=2, threads=threads)
    assert_same_bits(*result)


def test_timesteps_may_be_integers():
    buffers = random_buffers((2, 1, 2, 2)) | {"t": np.zeros(2, np.int64)}
    table = random_table()
    compiled, reference = run_both(buffers, table_options(), "auto", num_steps=1, table=table)
    assert_same_bits(compiled, reference)
    np.testing.assert_array_equal(compiled["t"], [table[1][1]] * 2)


@every_isa
@pytest.mark.parametrize("prediction_type", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 3, 1030])
def test_what_is_not_finite_is_flagged_and_stays_in_its_sample(isa, prediction_type, bad, place):
    buffers = random_buffers((4, 2, 23, 24), prediction_type)
    bits = {"float32": np.float32(bad), "float16": np.float16(bad)}
    bits["bfloat16"] = np.array(bad, np.float32).view(np.uint32) >> 16
    buffers["prediction"][2].reshape(-1)[place] = bits[prediction_type]
    buffers["row"][:] = [0, 1, 2, 3]
    # A clip, which would turn an infinite prediction into a finite x'.
    coefficients, timesteps = random_table()
    coefficients[:, COLUMNS.index("q")] = 0.0
    clean = copy.deepcopy(buffers)
    clean["prediction"][2] = 0
    compiled, _ = run_both(buffers, table_options(clip=1.0), isa, 1, (coefficients, timesteps))
    expected, _ = run_both(clean, table_options(clip=1.0), isa, 1, (coefficients, timesteps))
    np.testing.assert_array_equal(compiled["flag"], [0, 0, 3, 0])
    for neighbour in (0, 1, 3):
        for name in ("x", "x_start", "next_input"):
            np.testing.assert_array_equal(compiled[name][neighbour], expected[name][neighbour])


def test_the_first_failing_row_is_kept():
    buffers = random_buffers((1, 1, 2, 2))
    buffers["prediction"][0, 0, 0, 0] = np.inf
    buffers["row"][0] = 1
    compiled, reference = run_both(buffers, table_options(), "auto", num_steps=3)
    assert compiled["flag"][0] == reference["flag"][0] == 2


def test_an_overflow_of_x_is_flagged_though_the_prediction_is_finite():
    buffers = random_buffers((2, 1, 2, 2))
    buffers["x"][1, 0, 1, 1] = 3e38
    coefficients, timesteps = random_table()
    coefficients[:, COLUMNS.index("a")] = 10.0
    compiled, _ = run_both(buffers, table_options(clip=1.0), "auto", 1, (coefficients, timesteps))
    np.testing.assert_array_equal(compiled["flag"], [0, 1])


@every_isa
def test_a_row_without_noise_draws_none(isa):
    """With s = 0 the noise term is absent: even an infinite noise factor leaves x' as it is."""
    buffers = random_buffers((1, 1, 3, 3), wide=True)
    buffers["prediction"][:, 1:] = 200.0  # exp overflows
    coefficients, timesteps = random_table()
    coefficients[:, COLUMNS.index("s")] = 0.0
    coefficients[:, COLUMNS.index("k")] = 1.0
    compiled, reference = run_both(buffers, table_options(learned=True), isa, 1, (coefficients, timesteps))
    assert_same_bits(compiled, reference)
    assert np.isfinite(compiled["x"]).all()
    assert compiled["flag"][0] == 0


@every_isa
@pytest.mark.parametrize("target", ["float16", "bfloat16"])
def test_the_next_input_is_rounded_to_nearest_even(isa, target):
    """Over every exponent, the ties, subnormals, overflow to infinity, and NaN."""
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    ties = (np.arange(2**16, dtype=np.uint32) << np.uint32(16)) | np.uint32(0x8000)
    half_ties = (np.arange(2**19, dtype=np.uint32) << np.uint32(13)) | np.uint32(0x1000)
    values = np.concatenate([bits, ties, half_ties]).view(np.float32)
    with np.errstate(invalid="ignore"):
        values = values[: len(values) // 4 * 4].reshape(1, 4, -1, 1)
    buffers = random_buffers(values.shape, target) | {"x": values}
    coefficients, timesteps = random_table()
    coefficients[:] = 0.0
    coefficients[:, COLUMNS.index("a")] = 1.0
    compiled, reference = run_both(buffers, table_options(), isa, 1, (coefficients, timesteps))
    rounded, expected = compiled["next_input"], reference["next_input"]
    is_nan = np.isnan(values)
    np.testing.assert_array_equal(rounded.view(np.uint16)[~is_nan], expected.view(np.uint16)[~is_nan])
    as_float = rounded.astype(np.float32) if target == "float16" else (rounded.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(np.isnan(as_float), is_nan)


@every_isa
def test_every_float16_and_bfloat16_is_read_exactly(isa):
    coefficients, timesteps = random_table()
    coefficients[:] = 0.0
    coefficients[:, COLUMNS.index("q")] = 1.0
    for prediction_type, dtype in (("float16", np.float16), ("bfloat16", np.uint16)):
        buffers = random_buffers((1, 1, 256, 256), prediction_type)
        buffers["prediction"] = np.arange(2**16, dtype=np.uint16).view(dtype).reshape(1, 1, 256, 256)
        buffers["x"][:] = 0.0
        assert_same_bits(*run_both(buffers, table_options(), isa, 1, (coefficients, timesteps)))


def test_no_number_of_threads_is_as_many_as_this_process_may_use():
    """A container or a batch system often leaves a process fewer processors than the machine has."""
    options, buffers = table_options(2), random_buffers((1, 1, 4, 4))
    allowed = os.sched_getaffinity(0)
    try:
        for usable in (allowed, {min(allowed)}):
            os.sched_setaffinity(0, usable)
            assert _kernels.HostStep(*random_table(), **options, **buffers).threads == len(usable)
    finally:
        os.sched_setaffinity(0, allowed)


def test_steps_of_several_threads_at_once_are_those_of_one():
    """Each thread has its own HostStep; the pool of helpers is shared."""
    options, table = table_options(1, clip=1.0), random_table(num_rows=9)
    buffers = [random_buffers((4, 3, 128, 128), seed=n) for n in range(4)]
    expected = copy.deepcopy(buffers)
    for each in expected:
        step = _kernels.HostStep(*table, **options, **each, threads=1)
        for _ in range(8):
            step.run()
    steps = [_kernels.HostStep(*table, **options, **each, threads=2) for each in buffers]
    threads = [threading.Thread(target=lambda step=step: [step.run() for _ in range(8)]) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for actual, wanted in zip(buffers, expected, strict=True):
        assert_same_bits(actual, wanted)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not on this system")
def test_a_forked_child_steps_although_the_helpers_stayed_with_its_parent():
    options, table = table_options(clip=1.0), random_table()
    buffers = random_buffers((4, 3, 256, 256))
    expected, _ = run_both(buffers, options, "auto", num_steps=1, table=table, threads=2)
    step = _kernels.HostStep(*table, **options, **buffers, threads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is what is tried here
        child = os.fork()
    if child == 0:
        step.run()
        os._exit(0 if np.array_equal(buffers["x"], expected["x"]) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
