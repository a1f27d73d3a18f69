"""The binary data sets."""

import numpy as np

from train.binary_data import binary_digits, heartbeats


def test_a_heartbeat_has_a_one_in_every_fifth_of_20_bins():
    data = heartbeats()
    assert data.train.shape == (5, 1, 1, 20)
    assert data.entropy_bits == np.log2(5)
    assert len({row.tobytes() for row in data.train}) == 5
    for row in data.train.reshape(5, 20):
        assert np.diff(np.flatnonzero(row)).tolist() == [5, 5, 5]
    # Independent bits of these frequencies would cost 14.438 bits: table 1 of the paper, -2.414 + 12.024 and signs.
    assert abs(-20 * (0.2 * np.log2(0.2) + 0.8 * np.log2(0.8)) - (12.024 + 2.414)) < 1e-3


def test_digits_are_black_and_white_and_split():
    data = binary_digits()
    assert data.train.shape == (1545, 1, 8, 8)
    assert data.test.shape == (252, 1, 8, 8)
    assert set(np.unique(data.train)) == set(np.unique(data.test)) == {0, 1}
    assert 0.3 < data.train.mean() < 0.4
