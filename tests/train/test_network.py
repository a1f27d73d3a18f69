from __future__ import annotations

import pytest
import torch

from diffusion.errors import InputError
from diffusion.process import SampleShape
from train.network import check_shape, make_network
from train.presets import PRESETS


@pytest.mark.parametrize(
    ("preset", "shape", "num_parameters"),
    [
        # Ho et al. 2020, appendix B: 35.7 and 114 million.
        ("cifar10", SampleShape(3, 32, 32), 35_746_307),
        ("celebahq256", SampleShape(3, 256, 256), 113_673_219),
    ],
)
def test_published_networks(preset: str, shape: SampleShape, num_parameters: int) -> None:
    config = PRESETS[preset].config
    with torch.device("meta"):
        network = make_network(config.network, config.process(shape))
    assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters
    published = {
        "sample_size": shape.height,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "norm_eps": 1e-6,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "downsample_padding": 0,
        "attention_head_dim": None,
        "act_fn": "silu",
        "time_embedding_type": "positional",
    }
    assert {key: network.config[key] for key in published} == published


def test_published_hyper_parameters() -> None:
    cifar, celeba = PRESETS["cifar10"].config, PRESETS["celebahq256"].config
    assert (cifar.steps, cifar.batch_size, cifar.learning_rate) == (800_000, 128, 2e-4)
    assert (celeba.steps, celeba.batch_size, celeba.learning_rate) == (500_000, 64, 2e-5)
    assert (cifar.network.dropout, celeba.network.dropout) == (0.1, 0.0)
    for config in (cifar, celeba):
        assert (config.ema_decay, config.warmup_steps, config.gradient_clip, config.flips) == (0.9999, 5000, 1.0, True)
        assert (config.num_train_timesteps, config.beta_start, config.beta_end) == (1000, 1e-4, 0.02)


@pytest.mark.parametrize(
    ("preset", "shape"),
    [("digits", SampleShape(1, 8, 8)), ("digits", SampleShape(3, 8, 12)), ("mnist", SampleShape(1, 28, 28))],
)
def test_network_takes_the_shape_of_the_data(preset: str, shape: SampleShape) -> None:
    config = PRESETS[preset].config
    network = make_network(config.network, config.process(shape)).eval()
    with torch.no_grad():
        prediction = network(torch.zeros(2, *shape.chw), torch.tensor([0, 999])).sample
    assert prediction.shape == (2, *shape.chw)


def test_shapes_that_cannot_be_halved() -> None:
    with pytest.raises(
        InputError, match="images are 28×28 pixels, the network of preset celebahq256 needs multiples of 32"
    ):
        check_shape(PRESETS["celebahq256"].config.network, SampleShape(3, 28, 28), "celebahq256")
    check_shape(PRESETS["cifar10"].config.network, SampleShape(3, 64, 32), "cifar10")
