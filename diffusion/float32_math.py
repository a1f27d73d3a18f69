"""ln, sin, cos and exp in float32 from +, −, ×, √ and integer operations alone, the same bits everywhere.

A library's `logf` differs between machines and versions; these do not, because every operation here is one
that IEEE 754 rounds in exactly one way, and each is rounded on its own (NumPy never contracts `a*b + c`).
`kernels/float32_math.h` holds the same operations in the same order for C++ and CUDA: change both or neither.

The polynomials are minimax fits over the reduced interval, rounded to float32. Their own errors, relative to
the function: ln 2.7e-7 (of which z, through √(−2 ln u), keeps half), sin 2.3e-9, cos 1.4e-10, exp 3.2e-9.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Float32 = np.ndarray[Any, np.dtype[np.float32]]
UInt32 = np.ndarray[Any, np.dtype[np.uint32]]

# ln 2 in two parts: the first has 9 significant bits, so that an integer up to 128 times it is exact.
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)

_LN2 = np.float32(0.69314718)
_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_ONE_BITS = np.int32(0x3F800000)

# ln(1 + f) = f + f²·R(f), √½ − 1 ≤ f < √2 − 1
_LN = tuple(np.float32(c) for c in (-0.5, 0.33334246, -0.24983267, 0.19924504, -0.17137128, 0.16024379, -0.10191724))
# sin φ = φ + φ³·S(φ²) and cos φ = 1 + φ²·C(φ²), |φ| ≤ π/4
_SIN = tuple(np.float32(c) for c in (-0.16666651, 0.0083319787, -0.00019495636))
_COS = tuple(np.float32(c) for c in (-0.5, 0.041666646, -0.0013887368, 2.4438452e-05))
# exp r = 1 + r + r²·E(r), |r| ≤ ln(2)/2
_EXP = tuple(np.float32(c) for c in (0.5, 0.16666517, 0.041666202, 0.0083690733, 0.0013950809))

_RADIANS_PER_WORD = np.float32(2.0 * np.pi * 2.0**-32)
_LOG2_E = np.float32(1.44269504)
# Adding and subtracting 1.5·2²³ rounds to an integer, ties to even, in float32 additions alone.
_ROUNDER = np.float32(12582912.0)
_ROUNDER_BITS = np.int32(0x4B400000)

EXP_OVERFLOW = np.float32(88.72283)
EXP_UNDERFLOW = np.float32(-87.3)


def ln(x: Float32) -> Float32:
    """Natural logarithm of positive, normal, finite float32 numbers; undefined for others.

    x = m·2^k with m in [√½, √2), so that f = m − 1 is exact and an x near 1 keeps its relative accuracy.
    """
    shifted = x.view(np.int32) + (_ONE_BITS - _SQRT_HALF_BITS)
    exponent = ((shifted >> np.int32(23)) - np.int32(127)).astype(np.float32)
    mantissa_bits = (shifted & np.int32(0x7FFFFF)) + _SQRT_HALF_BITS
    f = mantissa_bits.view(np.float32) - np.float32(1.0)
    result: Float32 = (f + (f * f) * _polynomial(f, _LN)) + exponent * _LN2
    return result


def sin_cos(word: UInt32) -> tuple[Float32, Float32]:
    """sin θ and cos θ of the angle θ = 2π·word·2⁻³².

    The angle is reduced to a quarter turn in integers, so nothing is lost before the first rounding.
    """
    # The top two bits of `turned` number the quarter turn nearest to the angle; the rest is what remains.
    turned = word + np.uint32(1 << 29)
    rest = (turned & np.uint32(0x3FFFFFFF)).view(np.int32) - np.int32(1 << 29)
    phi = rest.astype(np.float32) * _RADIANS_PER_WORD
    square = phi * phi
    sine = phi + (phi * square) * _polynomial(square, _SIN)
    cosine = np.float32(1.0) + square * _polynomial(square, _COS)
    odd = (turned & np.uint32(0x40000000)) != 0
    sine_sign = turned & np.uint32(0x80000000)
    cosine_sign = (turned + np.uint32(0x40000000)) & np.uint32(0x80000000)
    return (
        (np.where(odd, cosine, sine).view(np.uint32) ^ sine_sign).view(np.float32),
        (np.where(odd, sine, cosine).view(np.uint32) ^ cosine_sign).view(np.float32),
    )


def exp(x: Float32) -> Float32:
    """e^x: inf above 88.72283, exactly 0 below −87.3 (so never a subnormal), NaN for NaN."""
    clamped = np.where(x < EXP_UNDERFLOW, EXP_UNDERFLOW, np.where(x > EXP_OVERFLOW, EXP_OVERFLOW, x))
    rounded = clamped * _LOG2_E + _ROUNDER
    n = rounded.view(np.int32) - _ROUNDER_BITS
    n_float = rounded - _ROUNDER
    r = (clamped - n_float * _LN2_HIGH) - n_float * _LN2_LOW
    value = (np.float32(1.0) + r) + (r * r) * _polynomial(r, _EXP)
    # 2^128 is not a float32, so the scale is applied in two factors.
    half = n >> np.int32(1)
    value = (value * _power_of_two(half)) * _power_of_two(n - half)
    value = np.where(x < EXP_UNDERFLOW, np.float32(0.0), value)
    return np.where(x > EXP_OVERFLOW, np.float32(np.inf), value)


def _polynomial(x: Float32, coefficients: tuple[np.float32, ...]) -> Float32:
    """Horner's rule, lowest coefficient first."""
    value: Float32 = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        value = value * x + coefficient
    return value


def _power_of_two(n: Any) -> Float32:
    power: Float32 = ((n + np.int32(127)) << np.int32(23)).view(np.float32)
    return power
