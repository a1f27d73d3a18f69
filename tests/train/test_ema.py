from __future__ import annotations

import pytest
import torch

from train.ema import Ema, ema_decay_at


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
