"""The binary data sets, and `python -m train.binary` on a short chain: what it reports is true of what it wrote."""

import json

import numpy as np
import pytest

from diffusion.binomial import constant_erasure
from diffusion.binomial_bound import estimate_bound
from train.binary import binary_digits, fraction_in, heartbeats, main
from train.mlp import read_mlp

TIMESTEPS = 40


def test_a_heartbeat_has_a_one_in_every_fifth_of_20_bins():
    data = heartbeats()
    assert data.train.shape == (5, 1, 1, 20)
    assert data.entropy_bits == np.log2(5)
    assert len({row.tobytes() for row in data.train}) == 5
    for row in data.train.reshape(5, 20):
        assert np.diff(np.flatnonzero(row)).tolist() == [5, 5, 5]
    # Independent bits of these frequencies would cost 14.438 bits: table 1 of the paper, -2.414 + 12.024 and signs.
    assert abs(-20 * (0.2 * np.log2(0.2) + 0.8 * np.log2(0.8)) - (12.024 + 2.414)) < 1e-3


def test_digits_are_black_and_white_and_split():
    data = binary_digits()
    assert data.train.shape == (1545, 1, 8, 8)
    assert data.test.shape == (252, 1, 8, 8)
    assert set(np.unique(data.train)) == set(np.unique(data.test)) == {0, 1}
    assert 0.3 < data.train.mean() < 0.4


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A minute's training in two seconds: fewer timesteps, fewer steps."""
    out = tmp_path_factory.mktemp("binary") / "heartbeat"
    arguments = ["--timesteps", str(TIMESTEPS), "--steps", "400", "--out", str(out), "--num-samples", "100"]
    assert main(arguments) == 0
    return out


def test_the_bound_comes_near_the_optimum_and_never_below(trained):
    facts = json.loads((trained / "mlp.json").read_text())
    learned, optimum, entropy = (facts["bits"][name] for name in ("learned", "optimum", "entropy"))
    assert entropy == pytest.approx(np.log2(5))
    # The same draws of x_t in both; independent bits would cost 14.4.
    assert optimum["bound"] - 0.01 < learned["bound"] < optimum["bound"] + 0.5
    assert abs(optimum["bound"] - entropy) < 0.3
    for bound in (learned, optimum):
        parts = bound["L_T"] + bound["sum_of_L_t_minus_1"] + bound["L_0"]
        assert parts == pytest.approx(bound["bound"])
        entropies = bound["H_q_X_T_given_X_0"] - bound["H_q_X_1_given_X_0"] - bound["H_p_X_T"]
        assert bound["K"] == pytest.approx(-bound["sum_of_L_t_minus_1"] + entropies)
        assert bound["L_T"] == 0.0  # nothing is left of the data in x_T
    assert facts["fraction_of_samples_in_data"] > 0.8


def test_the_folder_holds_the_network_that_was_weighed(trained):
    facts, again = json.loads((trained / "mlp.json").read_text()), read_mlp(trained)
    patterns = heartbeats().train
    x_start = np.resize(patterns, (252, *patterns.shape[1:]))
    bound = estimate_bound(constant_erasure(TIMESTEPS), again.predict, x_start)
    assert bound.bits == pytest.approx(facts["bits"]["learned"]["bound"], rel=1e-6)


def test_the_same_seed_gives_the_same_network(tmp_path):
    weights = []
    for name in ("a", "b"):
        out = tmp_path / name
        assert main(["--timesteps", "5", "--steps", "3", "--num-samples", "1", "--out", str(out)]) == 0
        weights.append((out / "mlp.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_digits_are_weighed_on_held_out_images(tmp_path, capsys):
    out = tmp_path / "digits"
    flags = ["--data", "digits", "--timesteps", "5", "--steps", "60", "--num-samples", "2", "--json"]
    assert main([*flags, "--out", str(out)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bits"]["entropy"] is None
    assert "optimum" not in report["bits"]
    assert 0.0 < report["bits"]["learned"]["bound"] < 64.0  # fair coins


def test_mistakes_are_one_line(trained, tmp_path, capsys):
    for flags, message in (
        (["--out", str(trained)], "holds a trained network; replace it with --overwrite"),
        (["--steps", "0"], "--steps is 0, expected a whole number of at least 1"),
        (["--timesteps", "0"], "--timesteps is 0, expected a whole number of at least 1"),
        (["--num-samples", "0"], "--num-samples is 0, expected a whole number of at least 1"),
        (["--seed", "-1"], "--seed is -1, expected 0 to 2^64 - 1"),
    ):
        assert main([*flags, *([] if "--out" in flags else ["--out", str(tmp_path / "new")])]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_fraction_in():
    patterns = np.array([[0, 1], [1, 0]], np.uint8).reshape(2, 1, 1, 2)
    samples = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.uint8).reshape(4, 1, 1, 2)
    assert fraction_in(samples, patterns) == 0.5
