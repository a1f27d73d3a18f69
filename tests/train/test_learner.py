from __future__ import annotations

import dataclasses

import pytest
import torch

from diffusion.errors import InputError
from train.learner import Ema, ema_decay_at, learning_rate_at
from train.presets import CIFAR10, DIGITS


def test_warm_up_is_linear_and_then_constant() -> None:
    config = CIFAR10.config
    assert learning_rate_at(0, config) == pytest.approx(2e-4 / 5000)
    assert learning_rate_at(2499, config) == pytest.approx(1e-4)
    assert learning_rate_at(4999, config) == learning_rate_at(799_999, config) == 2e-4


def test_cosine_falls_to_zero() -> None:
    config = dataclasses.replace(DIGITS.config, warmup_steps=0, learning_rate_decay="cosine", steps=1000)
    peak = config.learning_rate
    assert learning_rate_at(0, config) == peak
    assert learning_rate_at(500, config) == pytest.approx(peak / 2)
    assert 0 < learning_rate_at(999, config) < 1e-5 * peak


def test_unknown_decay() -> None:
    with pytest.raises(InputError, match="learning_rate_decay is 'step', expected one of constant, cosine"):
        learning_rate_at(0, dataclasses.replace(DIGITS.config, learning_rate_decay="step"))


def test_decay_warms_up_to_its_limit() -> None:
    assert ema_decay_at(1, 0.999) == pytest.approx(2 / 11)
    assert ema_decay_at(89, 0.999) == pytest.approx(90 / 99)
    assert ema_decay_at(10**6, 0.999) == 0.999


def test_average_follows_its_recursion() -> None:
    network = torch.nn.Linear(3, 2)
    ema = Ema(network, 0.7)
    expected = network.weight.detach().double().clone()
    generator = torch.Generator().manual_seed(0)
    for update in range(1, 30):
        with torch.no_grad():
            network.weight.copy_(torch.randn(2, 3, generator=generator))
        ema.update(network, update)
        decay = ema_decay_at(update, 0.7)
        expected = decay * expected + (1 - decay) * network.weight.detach().double()
    torch.testing.assert_close(ema.network.weight.double(), expected, atol=1e-6, rtol=0)


def test_constant_weights_are_their_own_average_and_the_network_is_not_shared() -> None:
    network = torch.nn.Linear(3, 2)
    ema = Ema(network, 0.9)
    before = network.weight.detach().clone()
    for update in range(1, 10):
        ema.update(network, update)
    torch.testing.assert_close(ema.network.weight, before)
    assert ema.network.weight is not network.weight
    assert not ema.network.weight.requires_grad
    assert network.weight.requires_grad
