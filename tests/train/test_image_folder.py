from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.errors import InputError
from train import image_folder
from train.image_folder import load_image_folder


def save_image(path: Path, size: tuple[int, int] = (8, 8), mode: str = "RGB", seed: int = 0) -> np.ndarray:
    shape = (size[1], size[0], 3) if mode in ("RGB", "RGBA") else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def test_images_are_read_from_subfolders_in_order_of_path(tmp_path: Path) -> None:
    first = save_image(tmp_path / "a" / "one.png", (6, 4), seed=1)
    second = save_image(tmp_path / "b.PNG", (6, 4), seed=2)
    (tmp_path / "notes.txt").write_text("not an image")
    images = load_image_folder(tmp_path)
    assert images.num_images == 2
    assert images.shape.chw == (3, 4, 6)
    np.testing.assert_array_equal(images.read(0), first.transpose(2, 0, 1))
    np.testing.assert_array_equal(images.read(1), second.transpose(2, 0, 1))


def test_a_set_too_large_for_memory_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        save_image(tmp_path / f"{seed}.png", seed=seed)
    at_once = load_image_folder(tmp_path)
    monkeypatch.setattr(image_folder, "MAX_DECODED_BYTES", 0)
    one_by_one = load_image_folder(tmp_path)
    for index in range(3):
        np.testing.assert_array_equal(one_by_one.read(index), at_once.read(index))


def test_gray_images_have_one_channel(tmp_path: Path) -> None:
    pixels = save_image(tmp_path / "gray.png", mode="L")
    images = load_image_folder(tmp_path)
    assert images.shape.chw == (1, 8, 8)
    np.testing.assert_array_equal(images.read(0)[0], pixels)


def test_image_size_scales_and_cuts_the_middle(tmp_path: Path) -> None:
    # Left third red, middle third green, right third blue: the middle square is green.
    pixels = np.zeros((8, 24, 3), np.uint8)
    for third in range(3):
        pixels[:, 8 * third : 8 * third + 8, third] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    save_image(tmp_path / "tall.png", (16, 40))
    images = load_image_folder(tmp_path, image_size=8)
    assert images.shape.chw == (3, 8, 8)
    wide = images.read(1)
    assert (wide[1] == 255).all()
    assert (wide[[0, 2]] == 0).all()


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="found no images, expected files ending in .png"):
        load_image_folder(tmp_path)


def test_two_sizes_name_both_files_and_the_remedy(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", (8, 8))
    save_image(tmp_path / "b.png", (8, 9))
    with pytest.raises(InputError, match=r"a\.png is 8×8 pixels, .*b\.png is 8×9.*--image-size N"):
        load_image_folder(tmp_path)


def test_two_modes_name_both_files_and_the_remedy(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", mode="L")
    save_image(tmp_path / "b.png", mode="RGB")
    with pytest.raises(InputError, match=r"a\.png has mode L, .*b\.png has mode RGB.*--image-mode"):
        load_image_folder(tmp_path)
    assert load_image_folder(tmp_path, image_mode="L").shape.channels == 1


def test_a_mode_that_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", mode="RGBA")
    with pytest.raises(InputError, match=r"a\.png: its mode is RGBA, expected L .gray. or RGB"):
        load_image_folder(tmp_path)
    assert load_image_folder(tmp_path, image_mode="RGB").shape.channels == 3


@pytest.mark.parametrize("keep", [0, 20, 0.5])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_broken_image_is_named(tmp_path: Path, keep: float, suffix: str) -> None:
    save_image(tmp_path / f"a.{suffix}", (32, 32))
    broken = tmp_path / f"b.{suffix}"
    save_image(broken, (32, 32))
    whole = broken.read_bytes()
    broken.write_bytes(whole[: int(len(whole) * keep) if keep < 1 else int(keep)])
    with pytest.raises(InputError, match=rf"b\.{suffix}: cannot be read as an image"):
        load_image_folder(tmp_path)
