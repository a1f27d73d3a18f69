"""Where every tensor of a checkpoint has its place in a network of diffusers' layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from diffusion.errors import InputError

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]

NORM_GROUPS = 32
"""Of every group normalization in the networks of Ho et al. 2020 and of OpenAI."""


class Place(NamedTuple):
    """One tensor: its name and shape in the checkpoint, and its name in diffusers' network.

    `how` says how it gets there: as it is; as a matrix, its last axes of length 1 dropped; as the three matrices or
    biases of q, k and v, whose names `to` has a `{}` for.
    """

    name: str
    shape: Shape
    to: str
    how: Literal["same", "matrix", "qkv"] = "same"


def layer(theirs: str, ours: str, shape: Shape, how: Literal["same", "matrix"] = "same") -> Iterator[Place]:
    """The weight and the bias of a convolution, a linear layer or a normalization."""
    yield Place(f"{theirs}.weight", shape, f"{ours}.weight", how)
    yield Place(f"{theirs}.bias", shape[:1], f"{ours}.bias")


def check_widths(path: Path, widths: Iterable[int]) -> None:
    """Raises InputError if a level has no channels, or a number of them that group normalization does not divide."""
    for width in widths:
        if width < 1 or width % NORM_GROUPS:
            raise InputError(
                f"{path}: a level has {width} channels, expected a multiple of {NORM_GROUPS}, the groups of its "
                "normalizations; the file is damaged, or of a changed network: choose another checkpoint"
            )


def placed(
    places: Iterable[Place],
    weights: Mapping[str, torch.Tensor],
    split_qkv: Callable[[Place, torch.Tensor], Iterable[torch.Tensor]] | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors under the names of diffusers' network.

    Args:
        places: of all of them.
        weights: by their names in the checkpoint.
        split_qkv: q, k and v of a tensor that holds all three.
    """
    found: dict[str, torch.Tensor] = {}
    for place in places:
        weight = weights[place.name]
        if place.how == "qkv" and split_qkv is not None:
            for name, part in zip(("to_q", "to_k", "to_v"), split_qkv(place, weight), strict=True):
                found[place.to.format(name)] = part.contiguous()
        else:
            found[place.to] = weight.reshape(weight.shape[:2]) if place.how == "matrix" else weight
    return found


def shape_of(path: Path, shapes: Mapping[str, Shape], expected: str, name: str, ndim: int) -> Shape:
    """The shape of a tensor that a layout is read from.

    Args:
        path: of the checkpoint, for messages.
        shapes: of its tensors, by name.
        expected: what the checkpoint should have been, and the remedy.
        name, ndim: the tensor, and how many axes it has.

    Raises:
        InputError: there is no such tensor, or it has other axes.
    """
    found = shapes.get(name)
    if found is None:
        raise InputError(f"{path}: lacks {name}, {expected}")
    if len(found) != ndim:
        raise InputError(f"{path}: {name} has shape {list(found)}, expected {ndim} axes, for images; {expected}")
    return found
