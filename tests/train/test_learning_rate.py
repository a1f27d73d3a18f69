from __future__ import annotations

import dataclasses

import pytest

from diffusion.errors import InputError
from train.learning_rate import learning_rate_at
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
