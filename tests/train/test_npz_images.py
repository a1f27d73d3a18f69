from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from commands import system
from diffusion.errors import InputError
from train.npz_images import load_npy, load_npz

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("key", ["arr_0", "images", "faces"])
def test_nhwc_becomes_nchw(tmp_path: Path, save: object, key: str) -> None:
    save(tmp_path / "a.npz", **{key: PIXELS})  # type: ignore[operator]
    images = load_npz(tmp_path / "a.npz")
    assert images.shape.chw == (3, 4, 6)
    np.testing.assert_array_equal(np.stack([images.read(i) for i in range(5)]), PIXELS.transpose(0, 3, 1, 2))


def test_nhw_has_one_channel(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", labels=np.arange(5), images=PIXELS[..., 0])
    images = load_npz(tmp_path / "a.npz")
    assert images.shape.chw == (1, 4, 6)
    np.testing.assert_array_equal(images.read(4)[0], PIXELS[4, ..., 0])


def test_fortran_order_is_understood(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.asfortranarray(PIXELS))
    np.testing.assert_array_equal(load_npz(tmp_path / "a.npz").read(2), PIXELS[2].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": PIXELS.astype(np.float32)}, "array images holds float32, expected uint8"),
        ({"images": PIXELS[0, 0]}, r"array images has shape \[6, 3\], expected \[N, H, W\]"),
        ({"images": PIXELS.transpose(0, 3, 1, 2)}, r"has shape \[5, 3, 4, 6\], expected"),
        ({"images": PIXELS[:0]}, "holds no images"),
        ({"a": PIXELS, "b": PIXELS}, "found the arrays a, b; expected arr_0 or images"),
        ({"images": np.array([{}], dtype=object)}, "array images holds Python objects, expected numbers"),
    ],
)
def test_arrays_that_are_no_images(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        load_npz(tmp_path / "a.npz")


def test_a_truncated_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", PIXELS)
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a\.npz: cannot be read as \.npy or \.npz"):
        load_npz(tmp_path / "a.npz")


def test_a_header_that_promises_more_than_the_file_has(tmp_path: Path) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (1_000_000, 4096, 4096, 3)}
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("arr_0.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(bytes(100))
    with pytest.raises(InputError, match="array arr_0 has 100 bytes of numbers, expected 50331648000000"):
        load_npz(tmp_path / "a.npz")


def test_more_than_the_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", PIXELS)
    monkeypatch.setattr(system, "available_bytes", lambda: 2 * PIXELS.nbytes - 1)
    with pytest.raises(InputError, match="needs .* of memory"):
        load_npz(tmp_path / "a.npz")
    monkeypatch.setattr(system, "available_bytes", lambda: 2 * PIXELS.nbytes)
    assert load_npz(tmp_path / "a.npz").num_images == 5


@pytest.mark.parametrize("damage", ["an archive's first bytes", "an archive", "nothing", "text", "pickle"])
def test_a_npy_file_that_is_none(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "images.npy"
    with path.open("wb") as file:
        np.savez(file, np.zeros((2, 4, 4, 1), np.uint8))
    whole = path.read_bytes()
    other = {"an archive": whole, "nothing": b"", "text": b"hello", "pickle": pickle.dumps([1])}
    path.write_bytes(other.get(damage, whole[:22]))
    with pytest.raises(InputError, match=r"images.npy"):
        load_npy(path)
