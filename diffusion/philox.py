"""Philox4x32-10, the generator of Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3".

A counter of four 32-bit words and a key of two give four random words, with no state between them. (NumPy's
own `Philox` is the 4x64 variant, another generator.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

UInt32 = np.ndarray[Any, np.dtype[np.uint32]]
UInt64 = np.ndarray[Any, np.dtype[np.uint64]]

NUM_ROUNDS = 10
MAX_SEED = 2**64
"""Seeds and the indices of samples are whole numbers from 0 to this less 1."""
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_INCREMENTS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox(counters: UInt32, keys: UInt32) -> UInt32:
    """Random words for every counter.

    Args:
        counters: uint32 [..., 4].
        keys: uint32 [..., 2], broadcast against the counters.

    Returns:
        uint32, the broadcast shape with 4 words last.
    """
    planes = [counters[..., i].astype(np.uint64) for i in range(4)]
    words = philox_planes(planes[0], planes[1], planes[2], planes[3], keys[..., 0], keys[..., 1])
    return np.stack(words, axis=-1)


def philox_planes(
    c0: Any, c1: Any, c2: Any, c3: Any, key_low: Any, key_high: Any
) -> tuple[UInt32, UInt32, UInt32, UInt32]:
    """The same with one array (or scalar) per word, which NumPy runs several times faster.

    All six broadcast against each other; each must hold values below 2³².
    """
    c0, c1, c2, c3, k0, k1 = (np.asarray(a, dtype=np.uint64) for a in (c0, c1, c2, c3, key_low, key_high))
    for _ in range(NUM_ROUNDS):
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0, c1 = (product1 >> _32) ^ (c1 ^ k0), product1 & _LOW
        c2, c3 = (product0 >> _32) ^ (c3 ^ k1), product0 & _LOW
        k0 = (k0 + _KEY_INCREMENTS[0]) & _LOW
        k1 = (k1 + _KEY_INCREMENTS[1]) & _LOW
    w0, w1, w2, w3 = np.broadcast_arrays(c0, c1, c2, c3)
    return w0.astype(np.uint32), w1.astype(np.uint32), w2.astype(np.uint32), w3.astype(np.uint32)
