"""What of a folder is data: splits, links, litter, and what is printed of the rest."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.errors import InputError
from train.datasets import DataRequest, load_data
from train.folder_listing import list_pictures
from train.image_folder import load_image_folder


def save(path: Path, value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((8, 8), value, np.uint8)
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(path)
    return path


def names(folder: Path, split: str | None = None) -> list[str]:
    return [str(path.relative_to(folder)) for path in list_pictures(folder, split).pictures]


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    for index in range(3):
        save(tmp_path / "train" / "cat" / f"{index}.png", 10 + index)
    save(tmp_path / "Val" / "0.png", 20)
    save(tmp_path / "test" / "0.png", 30)
    save(tmp_path / "cover.png", 40)
    return tmp_path


def test_splits_are_never_mixed(splits: Path) -> None:
    assert names(splits) == names(splits, "train") == names(splits, "training")
    assert names(splits) == ["train/cat/0.png", "train/cat/1.png", "train/cat/2.png"]
    assert names(splits, "validation") == names(splits, "val") == names(splits, "dev") == ["Val/0.png"]
    assert names(splits, "test") == ["test/0.png"]
    assert len(names(splits, "all")) == 6
    (note,) = list_pictures(splits).notes
    assert "split train: pictures in train are used (--split train is the default)" in note
    assert "not used: 1 in the top, 1 in Val, 1 in test" in note
    train, held_out = load_data(DataRequest(str(splits), held_out=1, split="train"))
    assert held_out is not None
    assert (train.num_images, held_out.num_images) == (2, 1)
    assert int(load_data(DataRequest(str(splits), split="test"))[0].read(0)[0, 1, 1]) == 30


def test_a_class_named_as_a_split_is(splits: Path) -> None:
    save(splits / "bus" / "0.png", 50)
    with pytest.raises(InputError, match="holds Val, test, train, as splits are named, and pictures in bus too"):
        list_pictures(splits)
    assert len(names(splits, "train")) == 3
    assert len(names(splits, "all")) == 7


def test_a_split_that_is_not_there(splits: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(InputError, match="has no split 'extra', found Val, test, train; .*--split all"):
        list_pictures(splits, "extra")
    for slices in ("train[:2]", "train[:50%]", "train+test"):
        with pytest.raises(InputError, match="slices and sums are for Hugging Face data sets"):
            list_pictures(splits, slices)
    plain = tmp_path_factory.mktemp("plain")
    save(plain / "cat" / "0.png")
    with pytest.raises(InputError, match="has no split 'train', for it has no folder named train"):
        list_pictures(plain, "train")
    only_test = tmp_path_factory.mktemp("only")
    save(only_test / "test" / "0.png")
    with pytest.raises(InputError, match="has no split 'train', found test; choose one with --split, or --split all"):
        list_pictures(only_test)


def test_what_is_left_out_is_counted_by_suffix(tmp_path: Path) -> None:
    save(tmp_path / "a.JPG")
    for name in ("b.heic", "c.heic", "labels.csv", "README"):
        (tmp_path / name).write_bytes(b"x")
    (note,) = list_pictures(tmp_path).notes
    assert note == (
        "left out, no pictures by their suffix: 2 .heic (as b.heic), 1 .csv (as labels.csv), 1 no suffix (as README)"
    )
    assert load_data(DataRequest(str(tmp_path)))[0].notes == (note,)
    (tmp_path / "a.JPG").unlink()
    with pytest.raises(InputError, match=r"found no images, .*2 \.heic \(as b\.heic\)"):
        list_pictures(tmp_path)


def test_litter_is_no_data(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    for name in (".hidden/a.png", "__MACOSX/a.png", "@eaDir/a.png", "._a.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no picture")
    listing = list_pictures(tmp_path)
    assert [path.name for path in listing.pictures] == ["a.png"]
    assert listing.notes == ()


def test_linked_folders_are_entered_once(tmp_path: Path) -> None:
    save(tmp_path / "data" / "a" / "0.png")
    (tmp_path / "data" / "a" / "circle").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "data" / "a")
    save(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "data" / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "d").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "data") == ["a/0.png", "c/1.png"]


def test_a_link_that_is_named_as_a_split(tmp_path: Path) -> None:
    save(tmp_path / "all_images" / "0.png")
    save(tmp_path / "test" / "1.png")
    (tmp_path / "train").symlink_to(tmp_path / "all_images")
    assert names(tmp_path) == ["train/0.png"]


def test_a_folder_of_notes_is_no_split(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "0.png")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test.py").write_text("pass")
    assert names(tmp_path) == ["cat/0.png"]


def test_a_file_of_several_names_is_one_picture(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    os.link(tmp_path / "a.png", tmp_path / "c.png")
    listing = list_pictures(tmp_path)
    assert [path.name for path in listing.pictures] == ["a.png"]
    assert listing.notes == ("2 more names of the same files are left out",)


def test_links_to_nothing_and_folders_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"b\.png: is a link to nothing"):
        list_pictures(tmp_path)
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").symlink_to("b.png")
    with pytest.raises(InputError, match=r"b\.png: is a link to nothing"):
        list_pictures(tmp_path)
    (tmp_path / "b.png").unlink()
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"b\.png: is a link to nothing, or no file"):
        list_pictures(tmp_path)
    (tmp_path / "b.png").unlink()
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match="locked: cannot be read .Permission denied."):
        list_pictures(tmp_path)


def test_decoded_pictures_are_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("train.image_folder.MIN_PICTURES", 3)
    data = tmp_path / "data"
    paths = [save(data / f"{index}.png", 10 + index) for index in range(3)]
    first = load_image_folder(data)
    decoded: list[Path] = []
    monkeypatch.setattr("train.image_folder.read_picture", lambda path, *_: decoded.append(path))
    again = load_image_folder(data)
    assert again.fingerprint == first.fingerprint
    assert not decoded
    np.testing.assert_array_equal(again.read(2), first.read(2))
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("train.image_folder.MIN_PICTURES", 3)
    # The same size and the same time of change, set back: the pixels are the new ones all the same.
    before = paths[1].stat()
    save(paths[1], 99)
    os.utime(paths[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert int(load_image_folder(data).read(1)[0, 1, 1]) == 99
    assert load_image_folder(data, image_size=4).shape.chw == (1, 4, 4)
    assert load_image_folder(data, image_mode="RGB").shape.chw == (3, 8, 8)
    # A flipped bit in what is kept.
    for kept in (tmp_path / "cache" / "ddpm-rt" / "pictures").iterdir():
        content = bytearray(kept.read_bytes())
        content[-1] ^= 1
        kept.write_bytes(content)
    np.testing.assert_array_equal(load_image_folder(data).read(2), first.read(2))


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("train.image_folder.MIN_PICTURES", 1)
    monkeypatch.setattr("train.image_folder.MAX_CACHE_BYTES", 1000)
    for index in range(5):
        save(tmp_path / str(index) / "a.png")
        load_image_folder(tmp_path / str(index))
    assert 1 <= len(list((tmp_path / "cache" / "ddpm-rt" / "pictures").iterdir())) <= 4


def test_a_large_set_of_changed_bytes_has_another_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("train.image_folder.MAX_DECODED_BYTES", 0)
    path = tmp_path / "data" / "a.bmp"
    save(path, 1)
    first = load_image_folder(tmp_path / "data").fingerprint
    assert load_image_folder(tmp_path / "data").fingerprint == first
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    assert load_image_folder(tmp_path / "data").fingerprint != first
