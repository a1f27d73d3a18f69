"""The energy distance against what is known of it, and the features it is measured in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from train.fitting import run
from train.fitting.energy import EnergyDistance, feature_network
from train.image_set import ImageSet


def images(num: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(shift, 1.0, (num, 1, 8, 8)).astype(np.float32))


def test_two_samples_and_two_points_by_hand() -> None:
    data = torch.tensor([0.0, 2.0]).reshape(2, 1, 1, 1)
    objective = EnergyDistance(data, None, None, "pixels", 0)
    # In units of the data's spread, 1: 2·mean(|x−y|) − |x−x'| − |y−y'|.
    found = objective.loss(torch.tensor([1.0, 4.0]).reshape(2, 1, 1, 1), range(2))
    assert found.item() == pytest.approx(2 * (1 + 1 + 4 + 2) / 4 - 3 - 2)


@pytest.mark.parametrize("features", ["pixels", "network", "both"])
def test_it_tells_distributions_apart(features: str) -> None:
    data, labels = images(300), np.random.default_rng(0).integers(0, 3, 300)
    objective = EnergyDistance(data, images(100, 1), labels, features, 7)
    same, other = (objective.figures(images(300, 2, shift), range(300)) for shift in (0.0, 0.3))
    assert list(same) == ["energy distance to the data", "energy distance to held-out data"]
    for name in same:
        assert abs(same[name]) < 0.01
        assert other[name] > 0.05


def test_data_without_spread_is_no_division_by_zero() -> None:
    objective = EnergyDistance(torch.zeros(3, 1, 8, 8), None, None, "both", 0)
    assert objective.loss(torch.zeros(4, 1, 8, 8), range(4)).item() == 0.0
    assert objective.loss(torch.ones(4, 1, 8, 8), range(4)).item() > 0.0


def test_data_in_the_order_of_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.fitting.energy._MAX_IMAGES", 50)
    two_classes = torch.cat([images(100), images(100, 1, 3.0)])
    mixed = EnergyDistance(two_classes, two_classes, None, "pixels", 0)
    found = mixed.figures(two_classes[torch.randperm(200, generator=torch.Generator().manual_seed(0))], range(200))
    assert all(abs(distance) < 0.1 for distance in found.values())


def test_the_features_learn_the_labels_and_depend_on_the_seed_alone() -> None:
    labels = np.repeat([0, 1], 100)
    data = images(200)
    data[labels == 1, :, 2:5, 2:5] += 2.0
    trained, again, other = (feature_network(data, labels, seed) for seed in (3, 3, 4))
    torch.testing.assert_close(trained(data), again(data), rtol=0, atol=0)
    assert not torch.equal(trained(data), other(data))
    classes = trained.head(trained.convolutions(data).mean(dim=(2, 3))).argmax(dim=1)
    assert (classes.numpy() == labels).mean() > 0.95
    assert not any(parameter.requires_grad for parameter in trained.parameters())
    assert trained(torch.zeros(2, 1, 8, 8)).shape == (2, 96 * 4 * 4)


def test_of_more_images_than_are_held_some_of_every_class_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.fitting.run._MAX_IMAGES", 20)
    in_order = ImageSet.from_array("sorted", np.repeat(np.arange(4, dtype=np.uint8), 25).reshape(100, 1, 1, 1))
    chosen = run._some(in_order, 3)
    assert len(set(chosen.tolist())) == 20
    assert len(np.unique(in_order.x_start(chosen))) == 4
    few = ImageSet.from_array("few", np.zeros((5, 1, 1, 1), np.uint8))
    assert run._some(few, 3).tolist() == [0, 1, 2, 3, 4]
