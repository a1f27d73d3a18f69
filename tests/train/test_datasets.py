from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.errors import InputError
from train.datasets import DataRequest, load_data

datasets = pytest.importorskip("datasets", reason="needs the package datasets, of the extra `train`")


def save_table(folder: Path, sizes: tuple[int, ...] = (8,) * 40) -> list[np.ndarray]:
    """Write a data set with `save_to_disk`: images, labels."""
    pixels = [np.random.default_rng(i).integers(0, 256, (8, size, 3), dtype=np.uint8) for i, size in enumerate(sizes)]
    features = datasets.Features({"label": datasets.Value("int64"), "picture": datasets.Image()})
    rows = {"label": list(range(len(sizes))), "picture": [Image.fromarray(one) for one in pixels]}
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": table, "small": table.select([0, 1])}).save_to_disk(str(folder))
    return pixels


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.disable_progress_bars()


def test_digits_have_their_own_held_out_part() -> None:
    train, held_out = load_data(DataRequest("digits"))
    assert held_out is not None
    assert (train.num_images, held_out.num_images, train.shape.levels) == (1545, 252, 17)
    assert load_data(DataRequest("digits", held_out=0))[1] is None
    with pytest.raises(InputError, match="--held-out is 300, but digits has 252"):
        load_data(DataRequest("digits", held_out=300))


def test_mnist_has_its_own_held_out_part_and_classes() -> None:
    train, held_out = load_data(DataRequest("mnist", classes=True))
    assert held_out is not None
    assert (train.num_images, held_out.num_images, train.shape.chw) == (4500, 500, (1, 28, 28))
    assert held_out.labels is not None
    np.testing.assert_array_equal(np.bincount(held_out.labels.of_image), np.full(10, 50))
    with pytest.raises(InputError, match="--levels"):
        load_data(DataRequest("mnist", levels=17))


def test_a_folder_of_images(tmp_path: Path) -> None:
    for index in range(3):
        Image.fromarray(np.full((8, 8), index, np.uint8)).save(tmp_path / f"{index}.png")
    train, held_out = load_data(DataRequest(str(tmp_path), held_out=1))
    assert held_out is not None
    assert (train.num_images, held_out.num_images) == (2, 1)


def test_a_saved_data_set(tmp_path: Path) -> None:
    pixels = save_table(tmp_path / "set")
    train, held_out = load_data(DataRequest(str(tmp_path / "set"), held_out=0))
    assert held_out is None
    assert train.num_images == 40
    np.testing.assert_array_equal(train.read(7), pixels[7].transpose(2, 0, 1))
    assert load_data(DataRequest(str(tmp_path / "set"), split="small"))[0].num_images == 2
    own = load_data(DataRequest(str(tmp_path / "set"), held_out_split="small"))
    assert own[1] is not None
    assert (own[0].num_images, own[1].num_images) == (40, 2)


def test_a_data_set_too_large_for_memory_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = save_table(tmp_path / "set")
    monkeypatch.setattr("train.hugging_face.MAX_DECODED_BYTES", 0)
    train, _ = load_data(DataRequest(str(tmp_path / "set"), held_out=0))
    np.testing.assert_array_equal(train.read(7), pixels[7].transpose(2, 0, 1))


def test_a_folder_of_parquet_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = save_table(tmp_path / "set")
    table = datasets.load_from_disk(str(tmp_path / "set"))["train"]
    (tmp_path / "tables").mkdir()
    table.to_parquet(str(tmp_path / "tables" / "train-00000.parquet"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    train, _ = load_data(DataRequest(str(tmp_path / "tables"), held_out=0))
    assert train.num_images == 40
    np.testing.assert_array_equal(train.read(3), pixels[3].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "valid"}, "has no split 'valid', found train, small; choose one with --split"),
        ({"image_column": "image"}, "has no column 'image', found label, picture"),
        ({"image_column": "label"}, "column 'label' holds int, expected images"),
    ],
)
def test_splits_and_columns_that_are_not_there(tmp_path: Path, fields: dict[str, str], message: str) -> None:
    save_table(tmp_path / "set")
    with pytest.raises(InputError, match=message):
        load_data(DataRequest(str(tmp_path / "set"), **fields))  # type: ignore[arg-type]


def test_mixed_sizes_in_a_data_set(tmp_path: Path) -> None:
    save_table(tmp_path / "set", (8, 8, 9))
    with pytest.raises(InputError, match="image 0 is 8×8 pixels, image 2 is 9×8; expected one size.*--image-size N"):
        load_data(DataRequest(str(tmp_path / "set")))
    assert load_data(DataRequest(str(tmp_path / "set"), image_size=8))[0].shape.chw == (3, 8, 8)


@pytest.mark.parametrize("data", ["./missing", "/missing/folder", "a/b/c"])
def test_a_path_that_is_not_there(data: str) -> None:
    with pytest.raises(InputError, match=f"--data {data}: no such folder"):
        load_data(DataRequest(data))


def test_a_missing_archive_and_a_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.npz: no such file"):
        load_data(DataRequest(str(tmp_path / "missing.npz")))
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match=r"a\.txt: found a file, expected digits, mnist, a folder"):
        load_data(DataRequest(str(tmp_path / "a.txt")))


def test_a_data_set_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match="--data cifar10: cannot be loaded as a Hugging Face data set, split train"
    ) as raised:
        load_data(DataRequest("cifar10"))
    assert "\n" not in str(raised.value)


def test_options_that_do_not_apply() -> None:
    with pytest.raises(InputError, match="--split does not apply to digits; leave it out"):
        load_data(DataRequest("digits", split="train"))


def test_slices_of_saved_data_sets(tmp_path: Path) -> None:
    pixels = save_table(tmp_path / "set")
    for split, rows in {
        "train[:3]": [0, 1, 2],
        "train[38:]": [38, 39],
        "train[:5%]": [0, 1],
        "train[-1:]": [39],
        "small[:1]+train[5:6]": [0, 5],
        "all": [*range(40), 0, 1],
    }.items():
        images, _ = load_data(DataRequest(str(tmp_path / "set"), split=split, held_out=0))
        assert images.num_images == len(rows)
        for place, row in enumerate(rows):
            np.testing.assert_array_equal(images.read(place), pixels[row].transpose(2, 0, 1))
    for split, message in {
        "train[:a]": "--split train.:a. cannot be read",
        "valid[:3]": "has no split 'valid', found train, small",
        "train[5:5]": "holds no images",
    }.items():
        with pytest.raises(InputError, match=message):
            load_data(DataRequest(str(tmp_path / "set"), split=split))


def test_the_split_of_one_saved_table(tmp_path: Path) -> None:
    save_table(tmp_path / "set")
    table = datasets.load_from_disk(str(tmp_path / "set"))["train"]
    table.save_to_disk(str(tmp_path / "unnamed"))
    assert load_data(DataRequest(str(tmp_path / "unnamed"), held_out=0))[0].num_images == 40
    with pytest.raises(InputError, match="is one saved table of no named split, so --split test does not apply"):
        load_data(DataRequest(str(tmp_path / "unnamed"), split="test"))
    named = datasets.Dataset.from_dict(table[:], features=table.features, split="test")
    named.save_to_disk(str(tmp_path / "named"))
    assert load_data(DataRequest(str(tmp_path / "named"), split="test[:4]", held_out=0))[0].num_images == 4
    assert load_data(DataRequest(str(tmp_path / "named"), held_out=0))[0].num_images == 40
    with pytest.raises(InputError, match="has no split 'train', found test"):
        load_data(DataRequest(str(tmp_path / "named"), split="train"))


def save_strange_pictures(folder: Path) -> list[np.ndarray]:
    """Two files, one on its side and one of 16 bits, and what they show: [H, W]."""
    folder.mkdir(exist_ok=True)
    upright = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(folder / "0.png", exif=exif)
    deep = np.random.default_rng(1).integers(0, 65536, (8, 8), dtype=np.uint16)
    Image.fromarray(deep).save(folder / "1.png")
    return [upright, (deep >> 8).astype(np.uint8)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # `datasets` leaves metadata.csv open
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_pictures_are_the_same_in_a_folder_with_metadata_and_in_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    shown = save_strange_pictures(tmp_path / "plain")
    save_strange_pictures(tmp_path / "listed")
    (tmp_path / "listed" / "metadata.csv").write_text("file_name,caption\n0.png,a\n1.png,b\n")
    paths = [str(tmp_path / "plain" / f"{index}.png") for index in range(2)]
    table = datasets.Dataset.from_dict({"image": paths}, features=datasets.Features({"image": datasets.Image()}))
    table.save_to_disk(str(tmp_path / "saved"))
    for name in ("plain", "listed", "saved"):
        for mode in (None, "L"):
            images, _ = load_data(DataRequest(str(tmp_path / name), held_out=0, image_mode=mode))
            assert images.shape.chw == (1, 8, 8)
            for index in range(2):
                np.testing.assert_array_equal(images.read(index)[0], shown[index], err_msg=f"{name} {index}")


def test_a_row_without_an_image_is_named(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image()})
    rows = {"image": [Image.fromarray(np.zeros((8, 8), np.uint8)), None]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(InputError, match="image 1: the row holds no image"):
        load_data(DataRequest(str(tmp_path / "set")))


def test_a_table_of_labels_beside_pictures_changes_nothing(tmp_path: Path) -> None:
    for index in range(3):
        Image.fromarray(np.full((8, 8), 100 * index, np.uint8)).save(tmp_path / f"{index}.png")
    (tmp_path / "labels.csv").write_text("name,label\n0,1\n")
    images, _ = load_data(DataRequest(str(tmp_path)))
    assert images.num_images == 3
    assert images.notes == ("left out, no pictures by their suffix: 1 .csv (as labels.csv)",)
    (tmp_path / "part-0.parquet").write_bytes(b"x")
    with pytest.raises(
        InputError, match="holds 3 pictures and 1 tables .as part-0.parquet., expected one or the other"
    ):
        load_data(DataRequest(str(tmp_path)))


def test_gray_levels_that_are_given(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 17, (6, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "numbers.npz", numbers)
    np.save(tmp_path / "spread.npy", np.rint(numbers * (255 / 16)).astype(np.uint8))
    for name in ("numbers.npz", "spread.npy"):
        images, _ = load_data(DataRequest(str(tmp_path / name), levels=17))
        assert images.shape.levels == 17
        np.testing.assert_allclose(images.x_start([3])[0, 0], numbers[3] / 8.0 - 1.0, atol=1e-6)
    with pytest.raises(InputError, match="none of 15 gray levels"):
        load_data(DataRequest(str(tmp_path / "spread.npy"), levels=15))
    with pytest.raises(InputError, match="--levels is 256, but digits has 17"):
        load_data(DataRequest("digits", levels=256))


def test_one_color_image_is_not_many_narrow_ones(tmp_path: Path) -> None:
    for save, name in ((np.save, "a.npy"), (np.savez, "a.npz")):
        save(tmp_path / name, np.zeros((32, 32, 3), np.uint8))
        with pytest.raises(
            InputError, match=r"has shape \[32, 32, 3\], which may be one image of 3 channels or 32 gray"
        ):
            load_data(DataRequest(str(tmp_path / name)))


def test_a_folder_named_as_a_kind_of_data_set_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = save_table(tmp_path / "set")
    table = datasets.load_from_disk(str(tmp_path / "set"))["train"]
    (tmp_path / "work" / "parquet").mkdir(parents=True)
    table.to_parquet(str(tmp_path / "work" / "parquet" / "a.parquet"))
    table.select([5]).to_parquet(str(tmp_path / "work" / "stray.parquet"))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    images, _ = load_data(DataRequest("parquet", held_out=0))
    assert images.num_images == 40
    np.testing.assert_array_equal(images.read(3), pixels[3].transpose(2, 0, 1))
    with pytest.raises(InputError, match="--data imagefolder: is a kind of data set"):
        load_data(DataRequest("imagefolder"))


def test_arrays_without_pixels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.zeros((3, 0, 8), np.uint8))
    with pytest.raises(InputError, match="holds no images"):
        load_data(DataRequest(str(tmp_path / "a.npz")))
