"""The published models: OpenAI's own code makes of their flags the networks that we expect, of the published sizes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from export.checkpoints.flags import GivenFlags
from export.checkpoints.openai import OPENAI
from export.checkpoints.openai_flags import check_layout_flags, images_of
from export.checkpoints.openai_layout import read_layout
from tests.export.checkpoints.published_models import PUBLISHED, openai_network

# The names of these files and the README give round numbers.
ROUGH = {
    "improved-imagenet64": 0.22,
    "improved-imagenet64-cond": 0.02,
    "improved-lsun": 0.14,
    "improved-cifar10": 0.06,
    "improved-64-256": 0.03,
}


@pytest.mark.parametrize("name", OPENAI.models)
def test_a_network_of_the_published_flags(name: str) -> None:
    path, flags = Path(name), GivenFlags(OPENAI.models[name], name)
    shapes = {key: tuple(tensor.shape) for key, tensor in openai_network(name).state_dict().items()}
    layout = read_layout(path, shapes)
    assert {place.name: place.shape for place in layout.places()} == shapes
    images = images_of(path, layout, flags)
    check_layout_flags(path, layout, images, flags)
    assert (images.small_size is not None) == ("small_size" in flags.values)
    num = sum(math.prod(shape) for shape in shapes.values())
    published = float(PUBLISHED[name].removesuffix("M")) * 1e6
    assert num == pytest.approx(published, rel=ROUGH.get(name, 0.005))
