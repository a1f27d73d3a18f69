"""Layouts at random: what the shapes of the tensors say is what they were made from, and every tensor has its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.errors import InputError
from export.checkpoints.ho_layout import HoLayout, read_ho_layout
from export.checkpoints.openai_layout import OpenAiLayout, read_layout
from export.checkpoints.openai_unet import Heads, OpenAiNetwork, make_unet, unet_arguments, why_not_plain

PATH = Path("model.pt")


@st.composite
def openai_layouts(draw: st.DrawFn) -> OpenAiLayout:
    num = draw(st.integers(1, 4))
    channels = draw(st.integers(1, 4))
    return OpenAiLayout(
        in_channels=channels,
        out_channels=channels * draw(st.sampled_from([1, 2])),
        model_channels=32 * draw(st.integers(1, 3)),
        widths=tuple(32 * draw(st.integers(1, 4)) for _ in range(num)),
        num_res_blocks=draw(st.integers(1, 3)),
        attention=tuple(draw(st.booleans()) for _ in range(num)),
        scale_shift=draw(st.booleans()),
        updown=num > 1 and draw(st.booleans()),
        num_classes=draw(st.one_of(st.none(), st.integers(1, 9))),
    )


@st.composite
def ho_layouts(draw: st.DrawFn) -> HoLayout:
    num, width = draw(st.integers(1, 4)), 32 * draw(st.integers(1, 3))
    channels = draw(st.integers(1, 4))
    return HoLayout(
        in_channels=channels,
        out_channels=channels,
        width=width,
        widths=(width, *(32 * draw(st.integers(1, 4)) for _ in range(num - 1))),
        num_res_blocks=draw(st.integers(1, 3)),
        attention=tuple(draw(st.booleans()) for _ in range(num)),
    )


@pytest.mark.parametrize("width", [0, 16, 48])
def test_widths_that_group_normalization_does_not_divide(width: int) -> None:
    openai = OpenAiLayout(3, 3, 32, (width, width), 1, (False, True), True, False, None)
    ho = HoLayout(3, 3, width, (width, width), 1, (False, True))
    for layout, read in ((openai, read_layout), (ho, read_ho_layout)):
        with pytest.raises(InputError, match=f"model.pt: a level has {width} channels, expected a multiple of 32"):
            read(PATH, {place.name: place.shape for place in layout.places()})


@given(openai_layouts())
def test_openai_shapes_say_what_they_were_made_from(layout: OpenAiLayout) -> None:
    places = list(layout.places())
    shapes = {place.name: place.shape for place in places}
    assert len(shapes) == len(places)
    assert read_layout(PATH, shapes) == layout


@given(ho_layouts())
def test_ho_shapes_say_what_they_were_made_from(layout: HoLayout) -> None:
    places = list(layout.places())
    shapes = {place.name: place.shape for place in places}
    assert len(shapes) == len(places)
    assert read_ho_layout(PATH, shapes) == layout


@settings(max_examples=10)
@given(openai_layouts(), st.sampled_from([(1, None), (4, None), (1, 16), (1, 32)]), st.booleans())
def test_every_openai_tensor_has_its_place(layout: OpenAiLayout, kind: tuple[int, int | None], new: bool) -> None:
    """The network is built and run without memory; its configuration alone builds the same where it is said to."""
    heads, size = Heads(kind[0], kind[0], kind[1], new), 2 ** (len(layout.widths) - 1)
    with torch.device("meta"):
        weights = {place.name: torch.empty(place.shape) for place in layout.places()}
        unet = make_unet(layout, heads, size, weights)
        labels = () if layout.num_classes is None else (torch.zeros(2, dtype=torch.int64),)
        prediction = OpenAiNetwork(unet)(torch.empty(2, layout.in_channels, size, size), torch.empty(2), *labels)
        assert prediction.shape == (2, layout.out_channels, size, size)
        if why_not_plain(layout, heads):
            return
        plain = UNet2DModel.from_config(unet_arguments(layout, heads, size))
    assert {name: part.shape for name, part in plain.state_dict().items()} == {
        name: part.shape for name, part in unet.state_dict().items()
    }
    assert [part.heads for part in plain.modules() if hasattr(part, "heads")] == [
        part.heads for part in unet.modules() if hasattr(part, "heads")
    ]


@settings(max_examples=10)
@given(ho_layouts())
def test_every_ho_tensor_has_its_place(layout: HoLayout) -> None:
    size = 2 ** len(layout.widths)
    with torch.device("meta"):
        unet = layout.make_unet(size, {place.name: torch.empty(place.shape) for place in layout.places()})
        x = torch.empty(2, layout.in_channels, size, size)
        assert unet(x, torch.empty(2), return_dict=False)[0].shape == x.shape
