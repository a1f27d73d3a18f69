"""The swiss roll's points and what `train.swiss_roll` writes."""

import json

import numpy as np
import pytest
from sklearn.datasets import make_swiss_roll

from train.mlp import read_mlp
from train.swiss_roll import NOISE_STD, RADIUS, main, roll_curve, roll_process, swiss_roll


def test_the_curve_is_the_cross_section_of_scikit_learns_roll():
    points, angle = make_swiss_roll(200, noise=0.0, random_state=0)
    place = (angle / (1.5 * np.pi) - 1.0) / 2.0
    np.testing.assert_allclose(roll_curve(place), points[:, [0, 2]] * RADIUS / (4.5 * np.pi), atol=1e-12)


def test_points_lie_around_the_curve_with_the_noise_that_is_stated():
    generator = np.random.default_rng(0)
    points = swiss_roll(20_000, generator)
    assert points.shape == (20_000, 2, 1, 1)
    assert points.dtype == np.float32
    assert np.abs(points).max() < roll_process().clip_sample
    assert 0.85 < points.std(axis=0).min() < points.std(axis=0).max() < 1.15
    radius = np.hypot(*points[:, :, 0, 0].T)
    # Across the roll the noise is all there is; the spiral's slope to a circle turns it by little.
    angle = 4.5 * np.pi * radius / RADIUS
    nearest = roll_curve((np.clip(angle, 1.5 * np.pi, 4.5 * np.pi) / (1.5 * np.pi) - 1.0) / 2.0)
    assert nearest.shape == (20_000, 2)
    curve = roll_curve(np.linspace(0, 1, 3000))
    sample = points[:500, :, 0, 0]
    distance = np.sqrt(((sample[:, None] - curve[None]) ** 2).sum(axis=2).min(axis=1))
    assert np.sqrt(np.mean(distance**2)) == pytest.approx(NOISE_STD, rel=0.1)


def test_the_command_writes_a_folder_and_repeats_itself(tmp_path, capsys):
    weights = []
    for name in ("a", "b"):
        assert main(["--out", str(tmp_path / name), "--steps", "4", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["steps"] == 4
        assert read_mlp(tmp_path / name).process.schedule == roll_process().schedule
        weights.append((tmp_path / name / "mlp.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert main(["--out", str(tmp_path / "a"), "--steps", "4"]) == 2
    assert "replace it with --overwrite" in capsys.readouterr().err
    for flags, message in ((["--steps", "0"], "--steps is 0"), (["--seed", str(2**64)], "--seed is")):
        assert main([*flags, "--out", str(tmp_path / "c")]) == 2
        assert message in capsys.readouterr().err
