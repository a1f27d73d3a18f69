"""The NumPy step against the formula in float64, and its rounding to the 16-bit types against PyTorch's."""

import numpy as np
import pytest
import torch

from diffusion.errors import InputError
from diffusion.normal import draw_number, normal
from diffusion.step_table import COLUMNS
from tests.kernels.numpy_step import ReferenceStep, apply_row, float32_from, rounded_to

SHAPE = (3, 5, 7)


def row(**coefficients):
    return np.float32([coefficients.get(name, 0.0) for name in COLUMNS])


def arrays(*names):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=SHAPE).astype(np.float32) for name in names}


def test_every_coefficient_multiplies_what_it_should():
    state = arrays("x", "p", "w", "z", "h1", "h2")
    c = {name: 0.1 + 0.05 * i for i, name in enumerate(COLUMNS)}
    x_next, x_start, h1_next, h2_next = apply_row(row(**c), **state, clip=0.7)
    x, p, w, z, h1, h2 = (a.astype(np.float64) for a in state.values())
    expected = np.clip(c["u"] * x + c["v"] * p, -0.7, 0.7)
    np.testing.assert_allclose(x_start, expected, atol=1e-6)
    np.testing.assert_allclose(h1_next, c["d"] * x + c["f"] * expected + c["g1"] * h1 + c["g2"] * h2, atol=1e-6)
    np.testing.assert_array_equal(h2_next, state["h1"])
    noise = c["s"] * np.exp(c["k"] * w) * z
    mean = c["a"] * x + c["q"] * p + c["b"] * expected + c["c1"] * h1 + c["c2"] * h2
    np.testing.assert_allclose(x_next, mean + noise, atol=2e-6)


def test_second_history_may_be_x_start():
    _, x_start, _, h2_next = apply_row(row(u=1.0, c2=1.0), **arrays("x", "p", "h1", "h2"), h2_is_x_start=True)
    np.testing.assert_array_equal(h2_next, x_start)


def test_clip_lets_nan_through_and_infinity_does_not_clip():
    x = np.float32([np.nan, np.inf, -np.inf, 3.0, -3.0, 0.5])
    clipped = apply_row(row(u=1.0), x, np.zeros_like(x), clip=1.0)[1]
    np.testing.assert_array_equal(clipped, np.float32([np.nan, 1, -1, 1, -1, 0.5]))
    np.testing.assert_array_equal(apply_row(row(u=1.0), x[3:], np.zeros(3, np.float32))[1], x[3:])


def test_a_row_without_noise_ignores_it():
    state = arrays("x", "p", "w")
    not_finite = np.full(SHAPE, np.nan, np.float32)
    np.testing.assert_array_equal(apply_row(row(a=1.0), state["x"], state["p"], not_finite, not_finite)[0], state["x"])


def step_with(**changes):
    rng = np.random.default_rng(1)
    num = 3
    buffers = {
        "x": rng.normal(size=(num, *SHAPE)).astype(np.float32),
        "prediction": rng.normal(size=(num, *SHAPE)).astype(np.float32),
        "t": np.zeros(num, np.float32),
        "row": np.array([0, 1, -1], np.int32),
        "seed": np.array([1, 2**64 - 1, 3], np.uint64),
        "sample_index": np.array([10, 2**40, 30], np.uint64),
        "flag": np.zeros(num, np.int32),
    }
    buffers |= changes
    table = np.stack([row(a=0.9, q=-0.1, s=0.5), row(a=0.8, q=-0.2, s=0.25), row(a=1.0)])
    timesteps = np.int32([900, 400, 100])
    flags = {"histories": 0, "learned": False, "h2_is_x_start": False, "clip": np.inf}
    return buffers, ReferenceStep(
        table, timesteps, **flags | {k: buffers.pop(k) for k in flags if k in buffers}, **buffers
    )


def test_each_sample_runs_its_own_row_with_the_noise_of_its_timestep():
    buffers, step = step_with()
    before = buffers["x"].copy()
    step.run()
    z = normal(SHAPE, 2**64 - 1, 2**40, draw_number(400))
    expected = np.float32(0.8) * before[1] + np.float32(-0.2) * buffers["prediction"][1] + np.float32(0.25) * z
    np.testing.assert_allclose(buffers["x"][1], expected, atol=1e-6)
    np.testing.assert_array_equal(buffers["x"][2], before[2])
    np.testing.assert_array_equal(buffers["row"], [1, 2, -1])
    np.testing.assert_array_equal(buffers["t"], [400, 100, 0])
    step.run()
    step.run()
    np.testing.assert_array_equal(buffers["row"], [3, 3, -1])
    np.testing.assert_array_equal(buffers["t"], [100, 100, 0])  # past the end nothing is written
    after = buffers["x"].copy()
    step.run()
    np.testing.assert_array_equal(buffers["x"], after)


def test_what_the_table_needs_must_be_there():
    with pytest.raises(InputError, match="prediction has 3 channels; expected 6"):
        step_with(learned=True)
    with pytest.raises(InputError, match="h1 is not given; the table keeps 1 histories"):
        step_with(histories=1)


def test_bfloat16_rounds_as_pytorch_does():
    rng = np.random.default_rng(2)
    bits = rng.integers(0, 2**32, 1_000_000, dtype=np.uint32)
    ties = (np.arange(2**16, dtype=np.uint32) << np.uint32(16)) | np.uint32(0x8000)
    values = np.concatenate([bits, ties]).view(np.float32)
    values = values[~np.isnan(values)]
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(rounded_to(np.uint16, values), expected)
    everything = np.arange(2**16, dtype=np.uint16)
    widened = torch.from_numpy(everything.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(float32_from(everything), widened)
    assert np.isnan(float32_from(rounded_to(np.uint16, np.uint32([0x7FFFFFFF, 0xFF800001]).view(np.float32)))).all()
