"""The network that a table is fitted to: its noise, its conditions, its precisions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.conditions import Condition
from diffusion.errors import InputError
from diffusion.normal import draw_number, normal_batch
from diffusion.samplers import make_table
from runtime.engines.torch_checkpoint import Checkpoint, load_checkpoint
from tests.checkpoints import save_tiny_checkpoint
from train.fitting.network import FittedNetwork

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Three classes, and a null class that guidance leads away from."""
    folder = save_tiny_checkpoint(
        tmp_path_factory.mktemp("of_classes") / "ckpt", size=4, num_train_timesteps=20, unet={"num_class_embeds": 4}
    )
    checkpoint = load_checkpoint(folder)
    label = Condition("y", "int64", classes=3, null=3)
    return replace(checkpoint, process=replace(checkpoint.process, conditions=(label,)).with_guidance())


def test_classes_are_those_of_the_data_by_index(conditional: Checkpoint) -> None:
    labels = np.array([2, 2, 2, 0])
    network = FittedNetwork.of(conditional, CPU, 5, labels, None)
    assert network.labels is not None
    assert sorted(network.labels) == sorted(labels)
    x, t = network.noise(range(6, 11)), torch.full((5,), 7.0)
    given = torch.tensor(network.labels[np.arange(6, 11) % 4])
    # At scale 1 guidance is the network of the class, bit for bit.
    torch.testing.assert_close(
        network.predict(range(6, 11))(x, t), conditional.network(x, t, given).detach(), rtol=0, atol=0
    )
    guided = FittedNetwork.of(conditional, CPU, 5, labels, 3.0).predict(range(6, 11))(x, t)
    null = conditional.network(x, t, torch.full((5,), 3)).detach()
    torch.testing.assert_close(guided, null + 3.0 * (conditional.network(x, t, given).detach() - null))
    without_data = FittedNetwork.of(conditional, CPU, 5, None, None)
    np.testing.assert_array_equal(without_data.labels, [0, 1, 2])


def test_the_noise_is_none_that_a_sampler_draws(conditional: Checkpoint) -> None:
    network = FittedNetwork.of(conditional, CPU, 5, None, None)
    noise = network.noise([3, 1 << 41]).numpy()
    assert noise.tobytes() == normal_batch((1, 4, 4), [5, 5], [3, 1 << 41], 3 << 28).tobytes()
    assert not np.isin(noise, normal_batch((1, 4, 4), [5, 5], [3, 1 << 41], draw_number(None))).any()


def test_parts_of_a_large_sample_are_those_of_small_ones(
    conditional: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, table = FittedNetwork.of(conditional, CPU, 5, None, None), make_table(conditional.process, "ddim", 2)
    whole = network.sample(table, range(5))
    monkeypatch.setattr("train.fitting.network._AT_ONCE", 2)
    torch.testing.assert_close(network.sample(table, range(5)), whole)
    torch.testing.assert_close(network.sample(table, [4]), whole[4:])


def test_lower_precision_rounds_and_memory_decides_on_recomputing(conditional: Checkpoint) -> None:
    network, table = FittedNetwork.of(conditional, CPU, 5, None, None), make_table(conditional.process, "ddim", 2)
    exact = network.sample(table, range(3))
    errors = [
        float((network.in_precision(dtype).sample(table, range(3)) - exact).abs().max())
        for dtype in (torch.bfloat16, torch.float16)
    ]
    assert 0.3 > errors[0] > errors[1] > 0.0
    assert torch.equal(network.with_whole_timesteps().sample(table, range(3)), exact)
    assert not network.recomputes(2, 4)
    assert network.recomputes(1000, 10**6)


def test_guidance_needs_a_null_class(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save_tiny_checkpoint(tmp_path / "ckpt", size=4, num_train_timesteps=20))
    with pytest.raises(InputError, match="guidance is given, but the network has no null class"):
        FittedNetwork.of(checkpoint, CPU, 0, None, 2.0)
    assert FittedNetwork.of(checkpoint, CPU, 0, np.array([1]), None).labels is None
