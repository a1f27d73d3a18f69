"""Conversions on the host: NumPy has no bfloat16."""

import numpy as np

from runtime.engines.host_call import bfloat16_to_float32, float32_to_bfloat16


def test_bfloat16_on_the_host():
    """Against the definition: the nearer of the two neighbours, the even one at a tie."""
    bits = np.arange(0, 2**32, 65_521, dtype=np.uint64).astype(np.uint32)
    ties = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0xFF7F8000, 0x7F800001, 0xFFFFFFFF, 0x00000001], np.uint32)
    x = np.concatenate([bits, ties]).view(np.float32)
    found, back = np.empty(x.shape, np.uint16), np.empty_like(x)
    float32_to_bfloat16(x, found)
    bfloat16_to_float32(found, back)
    nan = np.isnan(x)
    np.testing.assert_array_equal(np.isnan(back), nan)
    below = x.view(np.uint32) & 0xFFFF0000
    above = below + 0x10000  # away from zero
    with np.errstate(invalid="ignore"):
        exact, *sides = (
            np.asarray(each, np.uint32).view(np.float32).astype(np.float64)
            for each in (x.view(np.uint32), below, above)
        )
        distances = [np.abs(exact - side) for side in sides]
    finite = ~nan & np.isfinite(above.astype(np.uint32).view(np.float32)) & np.isfinite(x)
    up = (distances[1] < distances[0]) | ((distances[1] == distances[0]) & (below >> 16 & 1 == 1))
    expected = np.where(up, above, below) >> 16
    np.testing.assert_array_equal(found[finite], expected[finite])
    assert found[-5:-3].tolist() == [0x7F80, 0xFF80]  # larger than all, so infinite
