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
    with pytest.raises(InputError, match=r"a\.txt: found a file, expected digits, a folder"):
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
