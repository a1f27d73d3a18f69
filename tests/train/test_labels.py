"""Classes of training images: where they come from, that they stay with their images, and what trains on them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.conditions import Condition
from diffusion.errors import InputError
from train.batches import Batches
from train.datasets import DataRequest, load_data
from train.digits import load_digits_split
from train.evaluation import grid_labels
from train.image_set import ImageSet
from train.labels import Labels
from train.presets import TrainingConfig
from train.run import run
from train.training import Run, train


def marked(numbers: np.ndarray) -> np.ndarray:
    """uint8 [N, 8, 8, 3] images whose every pixel says their class."""
    return np.broadcast_to((100 * numbers)[:, None, None, None], (len(numbers), 8, 8, 3)).astype(np.uint8)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    numbers = np.arange(30) % 3
    np.savez(tmp_path / "classes.npz", images=marked(numbers), labels=numbers)
    return tmp_path / "classes.npz"


def save_pictures(folder: Path, counts: dict[str, int]) -> None:
    for place, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(marked(np.array([place]))[0]).save(folder / name / f"{number}.png")


def test_digits_have_the_labels_of_scikit_learn() -> None:
    images, held_out = load_data(DataRequest("digits", classes=True))
    split = load_digits_split()
    assert images.labels is not None
    assert held_out is not None
    assert held_out.labels is not None
    np.testing.assert_array_equal(images.labels.of_image, split.train_labels)
    np.testing.assert_array_equal(held_out.labels.of_image, split.held_out_labels)
    assert images.labels.names == tuple("0123456789")
    assert load_data(DataRequest("digits"))[0].labels is None


@pytest.mark.parametrize("split", ["", "train"])
def test_sub_folders_are_classes_with_and_without_splits(tmp_path: Path, split: str) -> None:
    save_pictures(tmp_path / "data" / split, {"cats": 3, "dogs": 30, "apes/young": 7})
    if split:
        save_pictures(tmp_path / "data" / "test", {"cats": 2})
    images, held_out = load_data(DataRequest(str(tmp_path / "data"), classes=True))
    assert held_out is not None
    for part in (images, held_out):
        assert part.labels is not None
        assert part.labels.names == ("apes", "cats", "dogs")
        marks = [int(part.read(index)[0, 0, 0]) for index in range(part.num_images)]
        assert marks == [{"cats": 0, "dogs": 100, "apes": 200}[part.labels.names[at]] for at in part.labels.of_image]
    assert images.num_images + held_out.num_images == 40


def test_a_picture_outside_a_sub_folder_is_named(tmp_path: Path) -> None:
    save_pictures(tmp_path, {"cats": 2})
    Image.fromarray(marked(np.array([1]))[0]).save(tmp_path / "stray.png")
    with pytest.raises(InputError, match=r"stray\.png: lies in no sub-folder of a class"):
        load_data(DataRequest(str(tmp_path), classes=True))


def test_labels_of_an_archive_stay_with_their_images(npz: Path) -> None:
    images, held_out = load_data(DataRequest(str(npz), classes=True, held_out=7))
    assert held_out is not None
    for part in (images, held_out):
        assert part.labels is not None
        assert [int(part.read(index)[0, 0, 0]) // 100 for index in range(part.num_images)] == list(part.labels.of_image)
    leveled, _ = load_data(DataRequest(str(npz), classes=True, levels=52))
    assert leveled.labels is not None


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.arange(29) % 3, "holds 30 images and 29 labels, expected one for each"),
        (np.full(30, -1), "label 0 is -1, expected 0 to 0"),
        (np.zeros((30, 1), np.int64), r"found int64 \[30, 1\], expected whole numbers of classes"),
        (np.zeros(30), r"found float64 \[30\], expected whole numbers"),
        (None, "has no array 'labels' that says the class of each image, found images"),
    ],
)
def test_labels_that_do_not_fit(tmp_path: Path, labels: np.ndarray | None, says: str) -> None:
    arrays = {"images": marked(np.arange(30) % 3)} | ({} if labels is None else {"labels": labels})
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=says) as caught:
        load_data(DataRequest(str(tmp_path / "a.npz"), classes=True))
    assert "\n" not in str(caught.value)


def save_table(path: Path, feature: object, values: list[object], name: str = "label") -> None:
    import datasets

    pictures = [Image.fromarray(each) for each in marked(np.arange(len(values)) % 2)]
    features = datasets.Features({"image": datasets.Image(), name: feature})
    datasets.Dataset.from_dict({"image": pictures, name: values}, features=features).save_to_disk(str(path))


def test_a_column_of_labels(tmp_path: Path) -> None:
    import datasets

    save_table(tmp_path / "labels", datasets.ClassLabel(names=["no", "yes", "never"]), [0, 1] * 3)
    save_table(tmp_path / "texts", datasets.Value("string"), ["b", "a"] * 3)
    save_table(tmp_path / "numbers", datasets.Value("int32"), [0, 2] * 3)
    for name, column, names, numbers in (
        ("labels", None, ("no", "yes", "never"), [0, 1] * 3),
        ("texts", "label", ("a", "b"), [1, 0] * 3),
        ("numbers", "label", ("0", "1", "2"), [0, 2] * 3),
    ):
        images, _ = load_data(DataRequest(str(tmp_path / name), classes=True, class_column=column, held_out=0))
        assert images.labels is not None
        assert (images.labels.names, images.labels.of_image.tolist()) == (names, numbers)
    with pytest.raises(InputError, match="found 0 columns of class labels among image, label, expected one; choose"):
        load_data(DataRequest(str(tmp_path / "texts"), classes=True))
    with pytest.raises(InputError, match="has no column 'kind', found image, label"):
        load_data(DataRequest(str(tmp_path / "texts"), classes=True, class_column="kind"))
    save_table(tmp_path / "gaps", datasets.ClassLabel(names=["no", "yes"]), [0, None])
    with pytest.raises(InputError, match="row 1 of column 'label' is None, expected a class"):
        load_data(DataRequest(str(tmp_path / "gaps"), classes=True))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"data": "digits", "class_column": "label"}, "--classes COLUMN does not apply to digits"),
        ({"data": "a.npy"}, r"an \.npy file has no classes"),
    ],
)
def test_what_has_no_such_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", marked(np.arange(4)))
    with pytest.raises(InputError, match=says):
        load_data(DataRequest(**fields, classes=True))


@pytest.mark.parametrize("highest", [2**20, 2**63 - 1])
def test_numbers_that_are_no_classes(highest: int) -> None:
    """No names are made for as many classes as a time stamp is high."""
    assert len(Labels.from_numbers([2**20 - 1], "test").names) == 2**20
    with pytest.raises(InputError, match=f"test: the highest label is {highest}, expected less than 1048576 classes"):
        Labels.from_numbers([0, highest], "test")


def test_batches_name_the_class_of_each_image_and_drop_one_in_ten() -> None:
    numbers = np.arange(40) % 3
    images = ImageSet.from_array("test", marked(numbers).transpose(0, 3, 1, 2)).with_labels(
        Labels.from_numbers(numbers, "test")
    )
    batches, with_all = (Batches(images, 50, 10, seed=1, drop_class=p) for p in (0.1, 0.0))
    null = dropped = 0
    for step in range(20):
        batch, same = batches.batch(step), with_all.batch(step)
        assert batch.labels is not None
        assert same.labels is not None
        shown = np.rint((batch.x_start[:, 0, 0, 0] + 1) * 127.5 / 100).astype(int)
        np.testing.assert_array_equal(same.labels, shown)
        # Nothing else that is drawn depends on it.
        np.testing.assert_array_equal(batch.eps, same.eps)
        null = batch.labels == 3
        np.testing.assert_array_equal(batch.labels[~null], shown[~null])
        dropped += int(null.sum())
    assert 60 < dropped < 140
    halves = [Batches(images, 50, 10, 1, False, 2, index, drop_class=0.1).batch(3).labels for index in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves), batches.batch(3).labels)  # type: ignore[arg-type]


def test_a_trained_run_has_the_class_embedding_and_says_so(
    make_run: Callable[..., Run], npz: Path, tiny_config: TrainingConfig
) -> None:
    from diffusers import DDPMPipeline

    made = make_run(data=DataRequest(str(npz), classes=True), num_samples=7)
    train(made)
    described = json.loads((made.out / "train.json").read_text())
    assert described["process"]["conditions"] == [{"name": "y", "type": "int64", "shape": [], "classes": 3, "null": 3}]
    assert described["classes"] == ["0", "1", "2"]
    unet = DDPMPipeline.from_pretrained(str(made.out)).unet
    assert unet.config.num_class_embeds == 4
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 3])
    with torch.no_grad():
        by_class = [unet(x, t, torch.tensor([y, y])).sample for y in range(4)]
    assert all(not torch.equal(by_class[0], other) for other in by_class[1:])
    with Image.open(made.out / "samples.png") as grid:  # three rows of two
        assert grid.height > grid.width


def test_without_dropping_there_is_no_null_class(make_run: Callable[..., Run], npz: Path) -> None:
    made = make_run(data=DataRequest(str(npz), classes=True))
    train(dataclasses.replace(made, config=dataclasses.replace(made.config, drop_class=0.0, steps=1)))
    described = json.loads((made.out / "train.json").read_text())
    assert described["process"]["conditions"] == [{"name": "y", "type": "int64", "shape": [], "classes": 3}]


def test_a_run_is_resumed_with_the_same_classes_alone(
    make_run: Callable[..., Run], npz: Path, tiny_config: TrainingConfig
) -> None:
    made = make_run(data=DataRequest(str(npz), classes=True), resume=True)
    train(made)
    assert train(made)["already_complete"]  # type: ignore[index]
    with pytest.raises(InputError, match=r"holds a run with drop_class 0\.1, asked for is 0\.2"):
        train(dataclasses.replace(made, config=dataclasses.replace(tiny_config, drop_class=0.2)))
    with pytest.raises(InputError, match="holds a run with data.classes"):
        train(dataclasses.replace(made, data=DataRequest(str(npz))))
    np.savez(npz, images=marked(np.arange(30) % 3), labels=np.zeros(30, np.int64))
    with pytest.raises(InputError, match="holds a run with data.classes"):
        train(made)


def test_the_rows_of_a_grid_are_classes() -> None:
    labels, columns = grid_labels(3, 11)
    assert (labels.tolist(), columns) == ([0, 0, 0, 1, 1, 1, 2, 2, 2], 3)
    labels, columns = grid_labels(1000, 4)
    assert (labels.tolist(), columns) == ([0, 1, 2, 3], 1)


def test_the_null_class_comes_after_the_others() -> None:
    labels = Labels.from_names(["b", "a", "b"])
    assert labels.condition(True) == Condition("y", "int64", classes=2, null=2)
    assert labels.condition(False) == Condition("y", "int64", classes=2)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--drop-class", "0.2"], "--drop-class does not apply to images without classes"),
        (["--classes", "--drop-class", "1"], "--drop-class is 1.0, expected at least 0 and less than 1"),
        (["--classes", "kind"], "--classes COLUMN does not apply to digits"),
    ],
)
def test_bad_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str) -> None:
    assert run(["--out", str(tmp_path / "run"), *flags]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
