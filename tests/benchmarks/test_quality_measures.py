"""Fréchet distance, precision and recall against closed forms; the features they are measured in."""

import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from benchmarks.digit_judge import DigitJudge
from benchmarks.quality.features import NUM_FEATURES, DigitFeatures, TorchScriptFeatures
from benchmarks.quality.manifold import manifold_measures
from benchmarks.quality.score import Gaussian, Scorer, frechet_distance
from diffusion.errors import InputError
from runtime.images import quantize
from train.digits import DigitsSplit, load_digits_split, load_mnist_split


def random_gaussian(seed, rank=6, dimensions=6):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(dimensions, rank))
    return Gaussian(rng.normal(size=dimensions), root @ root.T)


def test_frechet_distance_of_independent_axes_is_that_of_means_and_deviations():
    # For N(μ, s²) on each axis by itself: Σ (μ₁ − μ₂)² + (s₁ − s₂)².
    mean_1, mean_2, std_1, std_2 = np.random.default_rng(0).uniform(0.1, 3, size=(4, 5))
    distance = frechet_distance(Gaussian(mean_1, np.diag(std_1**2)), Gaussian(mean_2, np.diag(std_2**2)))
    assert distance == pytest.approx(((mean_1 - mean_2) ** 2 + (std_1 - std_2) ** 2).sum(), rel=1e-12)


def test_frechet_distance_agrees_with_the_root_of_the_product():
    """The formula as Heusel et al. 2017 print it: the root of Σ₁Σ₂, which is not symmetric."""
    first, second = random_gaussian(1), random_gaussian(2)
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance).real
    apart = first.mean - second.mean
    expected = apart @ apart + np.trace(first.covariance + second.covariance - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-10)


class Unchanged(torch.nn.Module):
    """Stands where torchmetrics expects a network: the features are given."""

    num_features = 6

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def test_frechet_distance_is_that_of_torchmetrics():
    rng = np.random.default_rng(5)
    real = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6))
    generated = rng.normal(1.0, 2.0, size=(400, 6))
    theirs = FrechetInceptionDistance(feature=Unchanged())
    theirs.update(torch.from_numpy(real), real=True)
    theirs.update(torch.from_numpy(generated), real=False)
    ours = frechet_distance(Gaussian.fit(real), Gaussian.fit(generated))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-12)


def test_frechet_distance_agrees_with_the_nuclear_norm_where_there_are_fewer_samples_than_features():
    """tr (Σ₁^½ Σ₂ Σ₁^½)^½ is the sum of the singular values of X₁X₂ᵀ, X the centered features: no root is taken."""
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(5, 12)), rng.normal(1, 2, size=(7, 12))
    x_1, x_2 = ((x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (first, second))
    apart = first.mean(axis=0) - second.mean(axis=0)
    expected = apart @ apart + (x_1**2).sum() + (x_2**2).sum() - 2 * np.linalg.norm(x_1 @ x_2.T, "nuc")
    assert frechet_distance(Gaussian.fit(first), Gaussian.fit(second)) == pytest.approx(expected, rel=1e-6)


def test_a_set_is_at_distance_zero_from_itself_and_shifts_count_squared():
    features = np.random.default_rng(4).normal(size=(50, 4))
    gaussian = Gaussian.fit(features)
    assert gaussian.covariance == pytest.approx(np.cov(features.T))
    assert frechet_distance(gaussian, gaussian) == pytest.approx(0.0, abs=1e-12)
    assert frechet_distance(gaussian, Gaussian.fit(features + 2.0)) == pytest.approx(16.0)


def test_features_that_are_not_finite_are_refused():
    features = np.zeros((4, 2))
    features[1, 1] = np.nan
    with pytest.raises(InputError, match="expected finite numbers"):
        Gaussian.fit(features)
    with pytest.raises(InputError, match="n of at least 2"):
        Gaussian.fit(np.zeros((1, 2)))


def precision_and_recall(real, generated, neighbors=3):
    found = manifold_measures(real, generated, neighbors, neighbors)
    return found["precision"], found["recall"]


def test_precision_and_recall_by_hand():
    """On a line with k = 1: balls of radius 1 around 0 and 1, of radius 8 around 9; and 5, 6, 20 around theirs."""
    real, generated = np.array([[0.0], [1.0], [9.0]]), np.array([[1.5], [-4.0], [30.0]])
    # Real: 1.5 lies in two balls, −4 in none (9's ball is [1, 17]), 30 in none: 1/3.
    # Generated: radii 5.5 around 1.5 ([−4, 7]), 5.5 around −4, 28.5 around 30 ([1.5, 58.5]): 0, 1 and 9 all inside.
    assert precision_and_recall(real, generated, neighbors=1) == (pytest.approx(1 / 3), 1.0)
    assert precision_and_recall(generated, real, neighbors=1) == (1.0, pytest.approx(1 / 3))


def test_density_and_coverage_by_hand():
    """The same sets: 1.5 lies in the balls around 1 and 9, so 2 pairs of 3 points; of the three balls two have it."""
    real, generated = np.array([[0.0], [1.0], [9.0]]), np.array([[1.5], [-4.0], [30.0]])
    found = manifold_measures(real, generated, 1, 1)
    assert (found["density"], found["coverage"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    # With k = 2 the balls are [−9, 9], [−7, 9] and [0, 18]: 1.5 lies in all, −4 in two; 5 pairs over 2·3.
    found = manifold_measures(real, generated, 1, 2)
    assert (found["density"], found["coverage"]) == (pytest.approx(5 / 6), 1.0)
    assert found["precision"] == pytest.approx(1 / 3)


def test_density_and_coverage_of_equal_distributions_and_of_one_mode():
    """Naeem et al. 2020: density is 1 and coverage 1 − 2^−k in expectation; an outlier moves neither."""
    rng = np.random.default_rng(7)
    real, same, centre = (rng.normal(size=(2000, 3)) for _ in range(3))
    found = manifold_measures(real, same)
    assert found["density"] == pytest.approx(1.0, abs=0.03)
    assert found["coverage"] == pytest.approx(1.0 - 2.0**-5, abs=0.01)
    one_mode = manifold_measures(real, 0.1 * centre)
    assert one_mode["density"] > 1.05
    assert one_mode["coverage"] < 0.1
    far = same.copy()
    far[0] = 100.0
    assert manifold_measures(real, far)["coverage"] == pytest.approx(found["coverage"], abs=0.002)


def test_half_of_two_clusters_has_full_precision_and_half_the_recall():
    rng = np.random.default_rng(5)
    left, right = rng.normal(size=(1500, 2)), rng.normal(size=(1500, 2)) + 100.0
    both, half = np.concatenate([left, right]), rng.normal(size=(3000, 2))
    found = manifold_measures(both, half)
    assert found["precision"] > 0.97
    assert 0.47 < found["recall"] <= 0.5
    assert 0.47 < found["coverage"] <= 0.5
    assert precision_and_recall(left, left) == (1.0, 1.0)
    assert precision_and_recall(left, right) == (0.0, 0.0)


def test_neighborhoods_hold_one_block_of_distances_at_a_time(monkeypatch):
    """All pairs of 4,000 points take 128 MB in float64; blocks of 2 MB give the same numbers."""
    rng = np.random.default_rng(6)
    real, generated = (rng.normal(size=(4000, 8)).astype(np.float32) for _ in range(2))
    at_once = manifold_measures(real[:500], generated[:500])
    monkeypatch.setattr("benchmarks.quality.manifold._DISTANCES_AT_ONCE", 1 << 18)
    monkeypatch.setattr("benchmarks.quality.manifold._COLUMNS_AT_ONCE", 300)
    assert manifold_measures(real[:500], generated[:500]) == at_once
    tracemalloc.start()
    try:
        manifold_measures(real, generated)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_precision_and_recall_want_equal_numbers():
    with pytest.raises(InputError, match="4 real and 5 generated"):
        manifold_measures(np.zeros((4, 1)), np.zeros((5, 1)))
    with pytest.raises(InputError, match="more than 5"):
        manifold_measures(np.zeros((5, 1)), np.zeros((5, 1)))


@pytest.fixture(scope="module")
def digits():
    split = load_digits_split()
    train, held_out = (quantize(part / np.float32(8) - 1) for part in (split.train_images, split.held_out_images))
    return split, train, held_out, DigitFeatures(train, split.train_labels)


def test_the_classifier_knows_held_out_digits(digits):
    split, _, held_out, extractor = digits
    assert extractor(held_out).shape == (252, NUM_FEATURES)
    assert (extractor.classes(held_out) == split.held_out_labels).mean() >= 0.95


def test_the_judge_of_classes_is_another_classifier():
    split = load_digits_split()
    judge = DigitJudge("digits")
    images = quantize(split.held_out_images / np.float32(8) - 1)
    assert judge.held_out_accuracy == (judge(images) == split.held_out_labels).mean() >= 0.97


def test_mnist_has_features_of_another_architecture_and_a_judge(monkeypatch):
    split = load_mnist_split()
    few = [part[::9] for part in (split.train_images, split.train_labels, split.held_out_images, split.held_out_labels)]
    monkeypatch.setattr("benchmarks.digit_judge.BUNDLED", {"mnist": lambda: DigitsSplit(*few, split.levels)})
    monkeypatch.setattr("benchmarks.quality.features._EPOCHS", 4)
    train, held_out = few[0].transpose(0, 2, 3, 1), few[2].transpose(0, 2, 3, 1)
    extractor, judge = DigitFeatures(train, few[1]), DigitJudge("mnist")
    assert extractor(held_out).shape == (len(held_out), NUM_FEATURES)
    assert (extractor.classes(held_out) == few[3]).mean() > 0.5
    assert judge.held_out_accuracy == (judge(held_out) == few[3]).mean() > 0.75
    assert "residual" in extractor.name


def test_the_classifier_is_the_same_each_time_and_leaves_random_numbers_alone(digits):
    split, train, _, _ = digits
    state = torch.get_rng_state()
    once, again = (DigitFeatures(train[:300], split.train_labels[:300]) for _ in range(2))
    assert once.fingerprint() == again.fingerprint()
    other = DigitFeatures(train[:300], split.train_labels[:300], seed=1)
    assert once.fingerprint() != other.fingerprint()
    assert torch.equal(torch.get_rng_state(), state)


def test_scores_tell_good_digits_from_noisy_ones_and_missing_classes(digits):
    split, train, held_out, extractor = digits
    scorer = Scorer(extractor, train, held_out, DigitJudge("digits"))
    noise = np.random.default_rng(0).normal(scale=60, size=held_out.shape)
    noisy = scorer.score(np.clip(held_out + noise, 0, 255).astype(np.uint8))
    clean = scorer.score(held_out)
    few = scorer.score(train[split.train_labels < 5][:252])
    floor = scorer.floor(252)
    assert floor["held_out"]["num"] == 252
    assert floor["held_out"]["frechet"] == pytest.approx(clean["frechet"])
    assert clean["frechet_at_held_out_size"] == pytest.approx(clean["frechet"])
    assert clean["frechet"] < 0.5 * noisy["frechet"]
    for measure in ("precision", "density", "coverage"):
        assert clean[measure] > noisy[measure] + 0.2
    assert (clean["classes"], few["classes"]) == (10, 5)
    assert clean["class_total_variation"] < 0.05
    assert few["class_total_variation"] == pytest.approx(0.5, abs=0.02)
    # Drawing with replacement from a part adds to what the part costs by itself.
    assert floor["train_resampled"]["frechet"] < floor["held_out_resampled"]["frechet"]
    assert scorer.floor(1000)["train_resampled"]["frechet"] < 0.4 * floor["train_resampled"]["frechet"]


class Moments(torch.nn.Module):
    """Stands for an Inception network: uint8 of any size in, as many numbers as channels out."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        if x.dtype != torch.uint8:
            raise ValueError("expected bytes")
        means = x.float().mean(dim=(2, 3))
        return means if return_features else means.sum(dim=1, keepdim=True)


class Scores(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()[0]


def script(module, path):
    torch.jit.script(module).save(str(path))
    return path


def test_a_torchscript_file_gets_bytes_in_three_channels_and_is_asked_for_features(tmp_path):
    extractor = TorchScriptFeatures(script(Moments(), tmp_path / "m.pt"))
    images = np.random.default_rng(0).integers(0, 256, size=(70, 4, 6, 1), dtype=np.uint8)
    features = extractor(images)
    assert features == pytest.approx(np.repeat(images.mean(axis=(1, 2)), 3, axis=1), rel=1e-5)
    colors = np.random.default_rng(0).integers(0, 256, size=(3, 4, 6, 3), dtype=np.uint8)
    assert extractor(colors) == pytest.approx(colors.mean(axis=(1, 2)), rel=1e-5)
    with pytest.raises(InputError, match="2 channels, expected 1 or 3"):
        extractor(colors[..., :2])


def test_files_that_do_not_serve_are_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file; expected digits or a TorchScript file"):
        TorchScriptFeatures(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(InputError, match="not a TorchScript file"):
        TorchScriptFeatures(tmp_path / "text.pt")
    extractor = TorchScriptFeatures(script(Scores(), tmp_path / "s.pt"))
    with pytest.raises(InputError, match=r"returned \[3, 4, 4\], expected features \[2, D\]"):
        extractor(np.zeros((2, 4, 4, 3), dtype=np.uint8))
