"""What NumPy writes is read as NumPy reads it; `tests/corpus` has what is refused."""

import io

import numpy as np
import pytest

from diffusion.errors import InputError
from runtime import array_files
from runtime.array_files import ONLY, arrays_of, open_arrays

ARRAYS = {
    "a": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(12, dtype=np.int64).reshape(3, 4)),
    "big_endian": np.arange(5, dtype=">f8"),
    "empty": np.zeros((0, 4), np.uint8),
    "number": np.array(3.5),
    "texts": np.array(["a", "bcd"]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive(tmp_path, save, monkeypatch):
    monkeypatch.setattr(array_files, "_PART_BYTES", 7)
    save(tmp_path / "a.npz", **ARRAYS)
    with open_arrays(tmp_path / "a.npz", "do so") as arrays:
        assert arrays.names == tuple(ARRAYS)
        for name, expected in ARRAYS.items():
            found = arrays.read(name)
            np.testing.assert_array_equal(found, expected)
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_single_array(name):
    stream = io.BytesIO()
    np.save(stream, ARRAYS[name])
    arrays = arrays_of(stream.getvalue(), "a.npy", "do so")
    assert arrays.names == (ONLY,)
    np.testing.assert_array_equal(arrays.read(ONLY), ARRAYS[name])


def test_what_is_not_wanted_is_refused_before_it_is_read(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", ARRAYS["a"])
    monkeypatch.setattr(array_files.np, "empty", None)

    def check(header):
        raise InputError(f"found {header}")

    with (
        open_arrays(tmp_path / "a.npz", "do so") as arrays,
        pytest.raises(InputError, match=r"found float32 \[2, 3, 4\]"),
    ):
        arrays.read("arr_0", check)


def test_a_changed_byte_of_an_archive_is_noticed(tmp_path):
    np.savez(tmp_path / "a.npz", ARRAYS["a"])
    content = bytearray((tmp_path / "a.npz").read_bytes())
    place = content.find(ARRAYS["a"].tobytes()[:32])
    content[place + 9] ^= 1
    with pytest.raises(InputError, match=r"a\.npz: cannot be read .*CRC-32.*; do so"):
        arrays_of(bytes(content), "a.npz", "do so").read("arr_0")
