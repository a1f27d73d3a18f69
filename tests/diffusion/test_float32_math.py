"""The float32 functions against float64, over every argument that the noise can give them or densely."""

import numpy as np
import pytest

from diffusion.float32_math import EXP_OVERFLOW, EXP_UNDERFLOW, exp, ln, sin_cos

SMALLEST_NORMAL = np.finfo(np.float32).tiny
ARITHMETIC = {"multiply", "add", "subtract"}


class Watched(np.ndarray):
    """Passes through arithmetic and records the smallest magnitude, other than 0, of all float results."""

    smallest = np.inf
    operations: frozenset[str] = frozenset()

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [i.view(np.ndarray) if isinstance(i, Watched) else i for i in inputs]
        result = getattr(ufunc, method)(*plain, **options)
        if result.dtype.kind == "f":
            assert result.dtype == np.float32, f"{ufunc.__name__} left float32"
            magnitudes = np.abs(result[result != 0])
            Watched.smallest = min(Watched.smallest, magnitudes.min(initial=np.inf))
            Watched.operations |= {ufunc.__name__}
        return result.view(Watched)

    def __array_function__(self, function, types, arguments, options):
        return super().__array_function__(function, types, arguments, options).view(Watched)  # np.where


def watched(function, argument):
    Watched.smallest, Watched.operations = np.inf, frozenset()
    function(argument.view(Watched))
    return Watched.smallest, Watched.operations


@pytest.fixture(scope="module")
def all_u():
    """Every u = ((w >> 9) + 1/2) / 2^23."""
    k = np.arange(2**23, dtype=np.uint32)
    return (2 * k + 1).astype(np.float32) * np.float32(2.0**-24)


@pytest.fixture(scope="module")
def angle_words():
    """Words dense over the circle, all near the quarter turns, where sin or cos vanishes or the branch changes."""
    near = np.arange(-(2**16), 2**16, dtype=np.int64)
    eighths = np.arange(8, dtype=np.int64)[:, None] << 29
    dense = np.arange(0, 2**32, 2039, dtype=np.int64)
    return np.concatenate([dense, ((eighths + near) % 2**32).ravel()]).astype(np.uint32)


def test_ln_of_every_u(all_u):
    exact = np.log(all_u.astype(np.float64))
    assert np.abs(ln(all_u) / exact - 1).max() < 3.5e-7


def test_ln_of_powers_of_two_and_of_one():
    x = np.float32(2.0) ** np.arange(-126, 128, dtype=np.float32)
    np.testing.assert_allclose(ln(x), np.log(x.astype(np.float64)), rtol=3.5e-7, atol=0)
    assert ln(np.float32([1.0]))[0] == 0.0


def test_sin_cos_dense_and_around_every_eighth_turn(angle_words):
    sine, cosine = sin_cos(angle_words)
    theta = angle_words.astype(np.float64) * (2 * np.pi * 2.0**-32)
    assert np.abs(sine - np.sin(theta)).max() < 1.3e-7
    assert np.abs(cosine - np.cos(theta)).max() < 1.3e-7
    # Near its zeros, sin keeps the relative accuracy of its angle, which was reduced in integers.
    small = np.arange(1, 2**16, dtype=np.uint32)
    np.testing.assert_allclose(sin_cos(small)[0], np.sin(small * (2 * np.pi * 2.0**-32)), rtol=2e-7, atol=0)


def test_exact_angles():
    sine, cosine = sin_cos(np.arange(4, dtype=np.uint32) << np.uint32(30))
    np.testing.assert_array_equal(sine, [0, 1, 0, -1])
    np.testing.assert_array_equal(cosine, [1, 0, -1, 0])


def test_exp_over_its_whole_range():
    x = np.linspace(EXP_UNDERFLOW, EXP_OVERFLOW, 2_000_001, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(exp(x) / exact - 1).max() < 1.6e-7
    assert exp(x).min() >= SMALLEST_NORMAL
    assert np.isfinite(exp(x)).all()


def test_exp_beyond_its_range():
    beyond = np.float32([88.73, 1e30, np.inf, -87.31, -1e30, -np.inf])
    np.testing.assert_array_equal(exp(beyond), np.float32([np.inf] * 3 + [0.0] * 3))
    assert np.isnan(exp(np.float32([np.nan]))).all()
    np.testing.assert_array_equal(exp(np.float32([0.0, -0.0, 1e-30, -1e-40])), np.float32([1, 1, 1, 1]))


def test_no_intermediate_of_the_noise_is_subnormal(all_u, angle_words):
    """So a CPU or GPU that flushes subnormals to zero gives the same bits."""
    smallest, operations = watched(ln, all_u)
    assert smallest > SMALLEST_NORMAL
    assert {"multiply", "add"} <= operations <= ARITHMETIC
    smallest, operations = watched(sin_cos, angle_words)
    assert smallest > SMALLEST_NORMAL
    assert {"multiply", "add"} <= operations <= ARITHMETIC
    r = np.sqrt(np.float32(-2.0) * ln(all_u))
    # The smallest product: the least radius and the least angle of a word other than 0.
    assert r.min() * sin_cos(np.uint32([1]))[0][0] > SMALLEST_NORMAL


def test_no_intermediate_of_exp_that_matters_is_subnormal():
    # Below about 1e-19 in magnitude r*r is subnormal, and added to 1: what flushing does to it cannot be seen.
    x = np.linspace(EXP_UNDERFLOW, EXP_OVERFLOW, 1_000_001, dtype=np.float32)
    x = x[np.abs(x) > 1e-15]
    smallest, operations = watched(exp, x)
    assert smallest >= SMALLEST_NORMAL
    assert {"multiply", "add"} <= operations <= ARITHMETIC
