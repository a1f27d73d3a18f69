"""The noise of a sample: standard normal numbers that depend on its seed, its index and the draw alone.

Philox4x32-10 with key = (seed low word, seed high word) and counter = (⌊e/4⌋, draw, sample index low
word, high word) for element e = (c·H + y)·W + x of the logical [C, H, W]; the element takes word e mod 4,
surplus words are discarded. (w0, w1) become (z0, z1) and (w2, w3) become (z2, z3) by Box & Muller 1958:

    u = ((w_even >> 9) + ½)·2⁻²³,  r = √(−2 ln u),  θ = 2π·w_odd·2⁻³²,  z = (r cos θ, r sin θ)

in float32 operations that are each rounded once (`diffusion.float32_math`). The compiled kernels give the
same bits on every instruction set. |z| ≤ √(−2 ln 2⁻²⁴) = 5.77; z is within 2e-6 of the float64 formula.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusion.errors import InputError
from diffusion.float32_math import Float32, UInt32, ln, sin_cos
from diffusion.philox import philox_planes

SAMPLING, LIKELIHOOD, BINOMIAL, FITTING = 0, 1, 2, 3  # streams
MAX_TIMESTEPS = 1 << 20
MAX_REPEATS = 1 << 8
# Small enough for the second-level cache, large enough that NumPy's cost per call vanishes.
_COUNTERS_PER_CHUNK = 1 << 14

_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def draw_number(timestep: int | None, stream: int = SAMPLING, repeat: int = 0) -> int:
    """Which draw of a sample: stream·2²⁸ + repeat·2²⁰ + n; n is 0 for x_T, else the training timestep + 1.

    The timestep, never the place in the loop, so that a respaced chain draws the noise of the full one.

    Args:
        timestep: training timestep 0..T−1 (T < 2²⁰), or None for the initial state x_T.
        stream: 0 sampling, 1 likelihood, 2 binomial, 3 fitting of tables.
        repeat: 0..255, for methods that draw several times at one timestep.

    Raises:
        InputError: a value out of its range.
    """
    if stream not in (SAMPLING, LIKELIHOOD, BINOMIAL, FITTING):
        raise InputError(f"stream is {stream}; expected 0 (sampling), 1 (likelihood), 2 (binomial) or 3 (fitting)")
    if not 0 <= repeat < MAX_REPEATS:
        raise InputError(f"repeat is {repeat}; expected 0..{MAX_REPEATS - 1}")
    if timestep is None:
        n = 0
    elif 0 <= timestep < MAX_TIMESTEPS - 1:
        n = int(timestep) + 1
    else:
        raise InputError(f"timestep is {timestep}; expected 0..{MAX_TIMESTEPS - 2}")
    return stream << 28 | repeat << 20 | n


def noise_words(num_elements: int, seed: int, sample_index: int, draw: int) -> UInt32:
    """The random 32-bit words behind a sample's draw, one per element: uint32 [num_elements].

    Raises:
        InputError: seed or sample index outside 0..2⁶⁴−1, or draw outside 0..2³²−1.
    """
    words: UInt32 = noise_words_batch(num_elements, [seed], [sample_index], draw)[0]
    return words


def noise_words_batch(
    num_elements: int, seeds: Sequence[int] | Any, sample_indices: Sequence[int] | Any, draws: int | Any
) -> UInt32:
    """The words of several samples: uint32 [N, num_elements]. Arguments and errors are those of `normal_batch`."""
    keys, indices, draw_words = _one_of_each(seeds, sample_indices, draws)
    num_counters = -(-num_elements // 4)
    words: UInt32 = np.empty((len(keys) * num_counters, 4), np.uint32)
    for first in range(0, len(words), _COUNTERS_PER_CHUNK):
        last = min(first + _COUNTERS_PER_CHUNK, len(words))
        for i, plane in enumerate(_words_of_counters(first, last, num_counters, keys, indices, draw_words)):
            words[first:last, i] = plane
    return words.reshape(len(keys), -1)[:, :num_elements]


def normal(shape: Sequence[int], seed: int, sample_index: int, draw: int) -> Float32:
    """Standard normal numbers of one sample: float32 of `shape`, usually [C, H, W].

    Raises:
        InputError: seed or sample index outside 0..2⁶⁴−1, or draw outside 0..2³²−1.
    """
    z: Float32 = normal_batch(shape, [seed], [sample_index], draw)[0]
    return z


def normal_batch(
    shape: Sequence[int], seeds: Sequence[int] | Any, sample_indices: Sequence[int] | Any, draws: int | Any
) -> Float32:
    """Standard normal numbers of several samples: float32 [N, *shape].

    Args:
        shape: of one sample, usually [C, H, W].
        seeds, sample_indices: N integers each, 0..2⁶⁴−1.
        draws: one `draw_number` for all samples, or N of them.

    Raises:
        InputError: a value out of its range, or numbers of seeds, sample indices and draws that differ.
    """
    keys, indices, draw_words = _one_of_each(seeds, sample_indices, draws)
    num_samples, num_elements = len(keys), math.prod(shape)
    num_counters = -(-num_elements // 4)
    z: Float32 = np.empty((num_samples * num_counters, 4), np.float32)
    for first in range(0, len(z), _COUNTERS_PER_CHUNK):
        last = min(first + _COUNTERS_PER_CHUNK, len(z))
        w0, w1, w2, w3 = _words_of_counters(first, last, num_counters, keys, indices, draw_words)
        z[first:last, 0], z[first:last, 1] = normal_pair(w0, w1)
        z[first:last, 2], z[first:last, 3] = normal_pair(w2, w3)
    # [N·counters, 4] -> [N, C, H, W]
    kept: Float32 = np.ascontiguousarray(z.reshape(num_samples, -1)[:, :num_elements]).reshape(num_samples, *shape)
    return kept


def normal_pair(w_even: UInt32, w_odd: UInt32) -> tuple[Float32, Float32]:
    """Box & Muller 1958: two random words give two independent standard normal numbers, float32."""
    # w >> 8 | 1 is 2·(w >> 9) + 1, below 2²⁴, so both the conversion and the power of two are exact.
    u = (w_even >> np.uint32(8) | np.uint32(1)).astype(np.float32) * np.float32(2.0**-24)
    r = np.sqrt(np.float32(-2.0) * ln(u))
    sine, cosine = sin_cos(w_odd)
    return r * cosine, r * sine


def _words_of_counters(
    first: int, last: int, num_counters: int, seeds: Any, sample_indices: Any, draws: Any
) -> tuple[UInt32, UInt32, UInt32, UInt32]:
    """Words of the counters first..last−1, counted through all samples with `num_counters` each."""
    position = np.arange(first, last, dtype=np.uint64)
    if len(seeds) == 1:
        block, seed, index, draw = position, seeds[:1], sample_indices[:1], draws[:1]
    else:
        sample, block = np.divmod(position, np.uint64(num_counters))
        seed, index, draw = seeds[sample], sample_indices[sample], draws[sample]
    return philox_planes(block, draw, index & _LOW, index >> _32, seed & _LOW, seed >> _32)


def _one_of_each(seeds: Any, sample_indices: Any, draws: Any) -> tuple[Any, Any, Any]:
    keys = _integers("seed", seeds, 64)
    indices = _integers("sample index", sample_indices, 64)
    draw_words = _integers("draw", [draws] * len(keys) if np.ndim(draws) == 0 else draws, 32)
    if not len(keys) == len(indices) == len(draw_words):
        raise InputError(f"{len(keys)} seeds, {len(indices)} sample indices, {len(draw_words)} draws; expected as many")
    return keys, indices, draw_words


def _integers(name: str, values: Any, bits: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    # Through Python integers, because NumPy wraps -1 and rounds numbers above 2^63 silently.
    integers = [operator.index(value) for value in values]
    for value in integers:
        if not 0 <= value < 1 << bits:
            raise InputError(f"{name} is {value}; expected 0..2^{bits}-1")
    return np.array(integers, dtype=np.uint64)
