"""The command: the same number from a checkpoint and its export, pairs, reports, pictures and bad input."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.likelihood import __main__ as likelihood
from diffusion.process import Process, SampleShape
from export import ExportRequest, export_onnx
from tests.benchmarks.closed_form_engine import NETWORK, SCHEDULE, as_x_start, exact_bits_per_dim, level_pixels
from tests.checkpoints import save_tiny_checkpoint
from tests.gaussian import GaussianNetwork
from train.digits import load_digits_split


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """unet.onnx in closed form, another one beside it, and images.npy."""
    folder = tmp_path_factory.mktemp("likelihood")
    NETWORK.save_onnx(folder / "unet.onnx")
    GaussianNetwork(NETWORK.process, 0.11, 0.5).save_onnx(folder / "other.onnx")
    np.save(folder / "images.npy", level_pixels(20))
    np.savez(folder / "images.npz", level_pixels(40))
    return folder


def run(capsys, *arguments, code=0):
    assert likelihood.main([str(argument) for argument in arguments]) == code
    return capsys.readouterr()


def run_json(capsys, *arguments):
    return json.loads(run(capsys, *arguments, "--json").out)


def test_a_checkpoint_and_its_export_have_the_same_likelihood(capsys, tmp_path):
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint", variance_type="learned_range")
    export_onnx(ExportRequest(tmp_path / "unet.onnx", checkpoint))
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (8, 8, 8), dtype=np.uint8))
    common = ("--data", tmp_path / "images.npy", "--split", "all", "--evaluations", 256)
    torch, onnx = (
        run_json(capsys, "--engine", engine, *common)["bits_per_dim"] for engine in (checkpoint, tmp_path / "unet.onnx")
    )
    assert onnx == pytest.approx(torch, rel=1e-5)
    other_seed = run_json(capsys, "--engine", tmp_path / "unet.onnx", *common, "--seed", 1)["bits_per_dim"]
    assert abs(other_seed / onnx - 1) > 1e-4


def test_the_report_against_the_exact_bound(capsys, folder):
    out, plot = folder / "results" / "bound.json", folder / "bound.png"
    arguments = ("--engine", folder / "unet.onnx", "--data", folder / "images.npy", "--split", "all")
    arguments += ("--against", folder / "other.onnx", "--evaluations", 2000, "--out", out, "--plot", plot)
    report = run_json(capsys, *arguments)
    assert report == json.loads(out.read_text())
    assert plot.read_bytes().startswith(b"\x89PNG")
    x_start = as_x_start(level_pixels(20))
    other = GaussianNetwork(NETWORK.process, 0.11, 0.5)
    exact, exact_other = exact_bits_per_dim(x_start), exact_bits_per_dim(x_start, other)
    error = report["standard_error_monte_carlo"]
    assert abs(report["bits_per_dim"] - exact) < 4 * error
    assert error < 0.02 * exact
    difference = report["difference"]
    assert abs(difference["bits_per_dim"] - (exact - exact_other)) < 4 * difference["standard_error_monte_carlo"]
    assert difference["standard_error_monte_carlo"] < error / 10
    assert report["images"] == 20
    assert report["evaluations"] <= 2000
    assert report["command"].startswith("python -m benchmarks.likelihood --engine")
    assert report["engine"]["path"].endswith("unet.onnx")
    assert report["against"]["path"].endswith("other.onnx")


def test_the_summary_says_what_a_precision_costs(capsys, folder):
    arguments = ("--engine", folder / "unet.onnx", "--data", folder / "images.npy", "--split", "all")
    text = run(capsys, *arguments, "--against", folder / "other.onnx", "--evaluations", 400).out
    assert "Monte Carlo, given these images" in text
    assert "population, over images" in text
    assert "unet.onnx costs " in text


def test_the_split_is_that_of_training(capsys, folder):
    arguments = ("--engine", folder / "unet.onnx", "--data", folder / "images.npz", "--evaluations", 400)
    assert run_json(capsys, *arguments)["images"] == 2  # one in twenty
    assert run_json(capsys, *arguments, "--split", "train")["images"] == 38
    assert run_json(capsys, *arguments, "--held-out", 8)["images"] == 8
    assert run_json(capsys, *arguments, "--held-out", 8, "--num", 3)["images"] == 3


def test_digits_are_the_default(capsys, tmp_path):
    network = GaussianNetwork(Process(SampleShape(1, 8, 8, 17), SCHEDULE, clip_sample=1.0), -0.3, 0.7)
    network.save_onnx(tmp_path / "unet.onnx")
    report = run_json(capsys, "--engine", tmp_path / "unet.onnx", "--evaluations", 1100)
    assert report["data"] == "digits, test"
    assert report["images"] == 252
    train = run_json(capsys, "--engine", tmp_path / "unet.onnx", "--split", "train", "--num", 5, "--evaluations", 100)
    assert train["images"] == 5


def test_a_budget_in_seconds_is_kept(capsys, folder):
    arguments = ("--engine", folder / "unet.onnx", "--data", folder / "images.npy", "--split", "all", "--num", 20)
    report = run_json(capsys, *arguments, "--budget", 1.5)
    assert report["evaluations"] >= 80
    assert report["seconds"] < 15  # the machine may be busy


def save_8x8(path, levels=256):
    """An engine for the digits whose file says `levels`."""
    network = GaussianNetwork(Process(SampleShape(1, 8, 8, levels), SCHEDULE, clip_sample=1.0), -0.3, 0.7)
    network.save_onnx(path)
    return path


def test_levels_that_the_data_contradicts_are_an_error(capsys, tmp_path):
    true, lost = save_8x8(tmp_path / "true.onnx", 17), save_8x8(tmp_path / "lost.onnx")
    right = run_json(capsys, "--engine", true, "--evaluations", 1100)
    assert right["levels"] == 17
    message = run(capsys, "--engine", lost, code=2).err
    assert (
        "digits: has 17 gray levels, the network's file says 256, or says nothing of them; give --levels 17" in message
    )
    given = run_json(capsys, "--engine", lost, "--levels", 17, "--evaluations", 1100)
    assert given["bits_per_dim"] == right["bits_per_dim"]
    assert "--levels is 256, but digits has 17; leave the flag out" in (
        run(capsys, "--engine", true, "--levels", 256, code=2).err
    )


def test_levels_are_seen_in_files(capsys, tmp_path):
    lost, true = save_8x8(tmp_path / "lost.onnx"), save_8x8(tmp_path / "true.onnx", 17)
    numbers = load_digits_split().held_out_images[:40, 0]
    np.save(tmp_path / "numbers.npy", numbers)
    np.save(tmp_path / "spread.npy", np.rint(numbers * (255 / 16)).astype(np.uint8))
    common = ("--split", "all", "--evaluations", 400)
    found = set()
    for name, words in (("numbers", "no pixel is above 16 of 255"), ("spread", "takes 17 evenly spaced values only")):
        data = ("--data", tmp_path / f"{name}.npy", *common)
        message = run(capsys, "--engine", lost, *data, code=2).err
        assert words in message
        assert "give --levels 17 if the data has so many, or --levels 256" in message
        found.add(run_json(capsys, "--engine", lost, *data, "--levels", 17)["bits_per_dim"])
        found.add(run_json(capsys, "--engine", true, *data)["bits_per_dim"])
        assert run_json(capsys, "--engine", lost, *data, "--levels", 256)["levels"] == 256
    assert len(found) == 1
    insisting = ("--engine", true, "--data", tmp_path / "spread.npy", *common, "--levels", 256)
    assert "the network's file says that it was trained on 17 gray levels" in run(capsys, *insisting, code=2).err


def test_ordinary_pictures_have_256_levels(capsys, tmp_path):
    lost = save_8x8(tmp_path / "lost.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    assert run_json(capsys, "--engine", lost, "--data", tmp_path / "images.npy", "--split", "all", "--evaluations", 100)


def test_folders_sizes_and_splits_as_in_training(capsys, tmp_path):
    lost = save_8x8(tmp_path / "lost.onnx")
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 5)):
        (tmp_path / "data" / split).mkdir(parents=True)
        for index in range(count):
            picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            picture.save(tmp_path / "data" / split / f"{index}.png")
    common = (
        "--engine",
        lost,
        "--data",
        tmp_path / "data",
        "--image-size",
        8,
        "--image-mode",
        "L",
        "--evaluations",
        800,
    )
    assert run_json(capsys, *common)["images"] == 5
    assert run_json(capsys, *common, "--split", "train")["images"] == 40
    assert run_json(capsys, *common, "--split", "all")["images"] == 45
    assert "has no split 'dev', found test, train" in run(capsys, *common, "--split", "dev", code=2).err
    (tmp_path / "data" / "test").rename(tmp_path / "data" / "val")
    report = run_json(capsys, *common)
    assert (report["images"], report["data"]) == (2, f"{tmp_path / 'data'}, held out of train")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "images.npy", "--split", "all", "--evaluations", "79"], "79 evaluations are too few for 20 images"),
        (["--data", "images.npy", "--split", "all", "--num", "21"], "--num is 21, expected 1 to 20"),
        (["--data", "nothing.npy"], "nothing.npy: no such file"),
        (["--data", "images.txt"], "expected digits, mnist, an .npz file or an .npy file"),
        (["--data", "digits"], "images are [1, 8, 8], the network's samples [1, 4, 4]"),
        (["--data", "digits", "--held-out", "3"], "--held-out does not apply to digits"),
        (["--data", "float.npy"], "holds float32, expected uint8 of gray levels"),
        (["--data", "broken.npy"], "cannot be read as .npy or .npz"),
        (["--data", "bright.npy", "--split", "all"], "a pixel is 17, but the network's data has 17 gray levels"),
        (["--data", "few.npy"], "holds no images out for --split test; give --split all"),
        (["--data", "images.npy", "--plot", "bound.bmp"], "found the suffix '.bmp'"),
    ],
)
def test_bad_input_is_one_line(capsys, folder, monkeypatch, flags, message):
    monkeypatch.chdir(folder)
    np.save("float.npy", np.zeros((3, 4, 4), np.float32))
    np.save("bright.npy", np.full((3, 4, 4), 17, np.uint8))
    np.save("few.npy", np.zeros((3, 4, 4), np.uint8))
    (folder / "broken.npy").write_bytes((folder / "images.npy").read_bytes()[:60])
    (folder / "images.txt").touch()
    result = run(capsys, "--engine", folder / "unet.onnx", *flags, code=2)
    *notes, error = result.err.splitlines()
    assert message in error
    assert all("first use" in note or "compared" in note for note in notes)
    assert result.out == ""


def test_seeds_and_numbers_out_of_range_are_usage_errors(capsys, folder):
    for flags in (["--seed", "-1"], ["--evaluations", "0"], ["--budget", "0"], ["--evaluations", "9", "--budget", "9"]):
        with pytest.raises(SystemExit) as error:
            likelihood.main(["--engine", str(folder / "unet.onnx"), *flags])
        assert error.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
