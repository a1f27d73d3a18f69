"""The compiled noise has the reference's bits, for every instruction set that this CPU can run."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion import float32_math, normal, philox
from runtime import _kernels
from tests.diffusion.test_normal import SAMPLE_INDEX, SEED, SHA256

every_isa = pytest.mark.parametrize("isa", _kernels.isa_levels())


def fill(shape, seeds, indices, draw, **options):
    out = np.full(shape, np.nan, np.float32)
    _kernels.normal(out, np.array(seeds, np.uint64), np.array(indices, np.uint64), draw, **options)
    return out


def test_the_best_instruction_set_is_the_last():
    levels = _kernels.isa_levels()
    assert levels[0] == "baseline"
    # What the CPU has, by another judge than the one that the kernels ask.
    capability = torch.backends.cpu.get_cpu_capability()
    assert ("avx2" in levels) == (capability in ("AVX2", "AVX512"))
    assert ("avx512" in levels) == (capability == "AVX512")


@every_isa
@pytest.mark.parametrize("threads", [1, 3])
def test_ten_million_normals_have_the_pinned_bits(isa, threads):
    out = fill((1, 10_000_000), [SEED], [SAMPLE_INDEX], normal.draw_number(999), isa=isa, threads=threads)
    assert hashlib.sha256(out.tobytes()).hexdigest() == SHA256


@every_isa
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (1, 3, 3), (3, 32, 32), (5, 41, 43), (2, 64, 64)])
def test_shapes_that_are_no_multiple_of_four_or_of_a_block(isa, shape):
    seeds, indices = [0, 2**64 - 1, 2**33 + 1, 5, 5], [0, 2**64 - 1, 7, 2**40, 2**40 + 1]
    draws = np.array([0, 1, 1000, 2**32 - 1, 3], np.uint32)
    out = fill((5, *shape), seeds, indices, draws, isa=isa)
    expected = normal.normal_batch(shape, seeds, indices, draws)
    np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))


@every_isa
def test_flushing_subnormals_changes_nothing(isa):
    if not torch.set_flush_denormal(True):
        pytest.skip("torch cannot make this CPU flush subnormals to zero")
    try:
        flushed = fill((1, 2_000_000), [3], [4], 5, isa=isa, threads=1)
        x = np.concatenate([np.linspace(-100, 100, 100_001), np.geomspace(1e-44, 1, 100_001)]).astype(np.float32)
        flushed_exp = np.empty_like(x)
        _kernels.exp(x, flushed_exp, isa=isa)
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_array_equal(flushed.view(np.uint32), fill((1, 2_000_000), [3], [4], 5, isa=isa).view(np.uint32))
    np.testing.assert_array_equal(flushed_exp, float32_math.exp(x))


@every_isa
def test_ln_of_every_u(isa):
    u = (2 * np.arange(2**23, dtype=np.uint32) + 1).astype(np.float32) * np.float32(2.0**-24)
    result = np.empty_like(u)
    _kernels.ln(u, result, isa=isa)
    np.testing.assert_array_equal(result.view(np.uint32), float32_math.ln(u).view(np.uint32))


@every_isa
def test_exp_over_and_beyond_its_range(isa):
    beyond = [88.72283, 88.7229, -87.3, -87.30001, np.inf, -np.inf, 0.0, -0.0, 1e-40]
    x = np.concatenate([np.linspace(-88, 89, 1_000_001), beyond]).astype(np.float32)
    result = np.empty_like(x)
    _kernels.exp(x, result, isa=isa)
    np.testing.assert_array_equal(result.view(np.uint32), float32_math.exp(x).view(np.uint32))
    not_a_number = np.full(17, np.nan, np.float32)
    _kernels.exp(not_a_number, result[:17], isa=isa)
    assert np.isnan(result[:17]).all()


def test_words_are_those_of_the_reference():
    rng = np.random.default_rng(0)
    counters, keys = rng.integers(0, 2**32, (999, 4), np.uint32), rng.integers(0, 2**32, (999, 2), np.uint32)
    words = np.empty_like(counters)
    _kernels.philox(counters, keys, words)
    np.testing.assert_array_equal(words, philox.philox(counters, keys))


def test_one_draw_for_all_or_one_for_each():
    each = fill((2, 3, 4), [1, 2], [3, 4], np.array([9, 9], np.uint32))
    np.testing.assert_array_equal(fill((2, 3, 4), [1, 2], [3, 4], 9), each)
    for draw, message in ((-1, "draw is out of range"), (2**32, "draw is out of range")):
        with pytest.raises(ValueError, match=message):
            fill((2, 3, 4), [1, 2], [3, 4], draw)
    with pytest.raises(ValueError, match=r"draw is of shape \[3\]; expected \[2\]"):
        fill((2, 3, 4), [1, 2], [3, 4], np.zeros(3, np.uint32))


def test_unknown_instruction_set_is_named():
    with pytest.raises(ValueError, match="isa is 'sse9'; expected auto, baseline"):
        fill((1, 4), [0], [0], 0, isa="sse9")
    with pytest.raises(ValueError, match="threads is negative"):
        fill((1, 4), [0], [0], 0, threads=-1)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc/self/task")
@pytest.mark.parametrize(
    ("num_elements", "threads", "helpers"), [(1_000_000, 3, 2), (1_000_000, 1, 0), (100_000, 3, 0), (140_000, 3, 1)]
)
def test_helpers_are_begun_only_for_work_that_is_worth_it(num_elements, threads, helpers):
    program = (
        "import os, numpy as np; from runtime import _kernels; count = lambda: len(os.listdir('/proc/self/task'))\n"
        f"before = count(); one = np.zeros(1, np.uint64); out = np.empty((1, {num_elements}), np.float32)\n"
        f"_kernels.normal(out, one, one, 0, threads={threads}); print(count() - before)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(result.stdout) == helpers
