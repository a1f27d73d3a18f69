"""Distances of point clouds in closed form; and a roll trained briefly, exported, sampled, compared and pictured."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.swiss_roll import distance_to_curve, draw_trajectories, main, measure, sliced_wasserstein, squared_mmd
from diffusion.samplers import make_table
from export.mlp_to_onnx import main as export
from runtime.engines.opening import open_engine
from runtime.sample import main as sample
from train.swiss_roll import main as train
from train.swiss_roll import swiss_roll

RNG = np.random.default_rng(0)


def test_sliced_wasserstein_of_a_shift_is_its_length_over_root_two():
    points = RNG.standard_normal((300, 2))
    shifted = points[::-1] + np.array([0.3, -0.4])
    assert sliced_wasserstein(points, shifted) == pytest.approx(0.5 / np.sqrt(2.0), rel=1e-12)
    assert sliced_wasserstein(points, RNG.permutation(points)) == pytest.approx(0.0, abs=1e-12)


def test_mmd_of_two_gaussians():
    """E k(x, y) for x ~ N(0, I), y ~ N(m, I) in the plane is c·exp(−|m|²/(2(h² + 2))) with c = h²/(h² + 2)."""
    h, shift = 0.7, np.array([0.5, 0.5])
    first, second = RNG.standard_normal((3000, 2)), RNG.standard_normal((3000, 2)) + shift
    factor = h**2 / (h**2 + 2.0)
    expected = 2.0 * factor * (1.0 - np.exp(-(shift @ shift) / (2.0 * (h**2 + 2.0))))
    assert squared_mmd(first, second, h) == pytest.approx(expected, rel=0.15)
    assert abs(squared_mmd(first, second - shift, h)) < 1e-3


def test_mmd_is_unbiased():
    values = [squared_mmd(*RNG.standard_normal((2, 50, 2)), 0.5) for _ in range(200)]
    assert abs(np.mean(values)) < 3.5 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0 < max(values)


def test_distance_to_a_curve():
    curve = np.stack([np.linspace(-1, 1, 2001), np.zeros(2001)], axis=1)
    points = np.array([[0.5, 0.25], [-0.3, 0.0], [2.0, 0.0]])
    np.testing.assert_allclose(distance_to_curve(points, curve), [0.25, 0.0, 1.0], atol=1e-12)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """A fifth of the default training: enough to see the roll."""
    folder = tmp_path_factory.mktemp("roll")
    assert train(["--out", str(folder / "run"), "--steps", "800"]) == 0
    assert export(["--checkpoint", str(folder / "run"), "--out", str(folder / "roll.onnx")]) == 0
    return folder / "roll.onnx"


def test_samples_are_far_nearer_to_the_data_than_a_gaussian_of_its_moments(engine, tmp_path, capsys):
    flags = ["--num", "500", "--steps", "100"]
    picture, out = tmp_path / "roll.png", tmp_path / "roll.json"
    assert main(["--engine", str(engine), *flags, "--picture", str(picture), "--out", str(out), "--json"]) == 0
    report = json.loads(out.read_text())
    assert {"format", "command", "commit", "machine"} <= report.keys()
    results = report["results"]
    assert results["samples"]["squared_mmd"] < results["gaussian"]["squared_mmd"] / 4
    assert results["samples"]["fraction_off_roll"] < results["gaussian"]["fraction_off_roll"] / 2
    assert results["samples"]["median_distance_to_roll"] < results["gaussian"]["median_distance_to_roll"] / 3
    with Image.open(picture) as image:
        assert image.size == (1000, 620)
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 10


def test_the_command_for_images_gives_the_same_samples(engine, tmp_path):
    flags = ["--num", "30", "--steps", "20", "--format", "npy", "--out", str(tmp_path / "samples")]
    assert sample(["--engine", str(engine), *flags]) == 0
    x = np.load(tmp_path / "samples" / "samples.npy")
    assert x.shape == (30, 2, 1, 1)
    opened = open_engine(engine)
    trajectories = draw_trajectories(opened, make_table(opened.process, "ddpm", 20), 30, seed=0)
    np.testing.assert_allclose(trajectories.x[-1], x[:, :, 0, 0], atol=1e-4)
    assert trajectories.timesteps[0] == 999
    assert trajectories.timesteps[-1] == -1
    np.testing.assert_array_equal(trajectories.x_start[-1], trajectories.x[-1])  # the last row ends at x_start


def test_data_are_as_near_as_data_and_a_gaussian_is_not():
    results = measure(swiss_roll(1500, np.random.default_rng(8))[:, :, 0, 0])
    assert results["samples"]["squared_mmd"] < results["gaussian"]["squared_mmd"] / 20
    assert results["data"]["fraction_off_roll"] == 0.0
    assert results["gaussian"]["fraction_off_roll"] > 0.4


def test_mistakes_are_one_line(engine, tmp_path, capsys):
    from diffusion.noise_schedule import NoiseSchedule
    from diffusion.process import Process, SampleShape
    from tests.gaussian import GaussianNetwork

    images = GaussianNetwork(Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear")), 0.0, 0.5)
    images.save_onnx(tmp_path / "images.onnx")
    for flags, message in (
        (["--engine", str(tmp_path / "images.onnx")], "expected points, (2, 1, 1)"),
        (["--engine", str(engine), "--num", "1"], "--num is 1, expected at least 2"),
    ):
        assert main([*flags, "--picture", str(tmp_path / "p.png")]) == 2
        *notes, error = capsys.readouterr().err.splitlines()
        assert message in error
        assert all("first use" in note or "compared" in note for note in notes)
