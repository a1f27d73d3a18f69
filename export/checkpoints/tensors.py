"""The tensors of a checkpoint against those that its network needs, before any is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from commands.system import check_memory
from diffusion.errors import InputError

_WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def checked_tensors(
    path: Path,
    found: Mapping[str, torch.Tensor],
    expected: Mapping[str, tuple[int, ...]],
    remedy: str,
) -> dict[str, torch.Tensor]:
    """The tensors of a network as float32.

    Args:
        path: of their file, for messages.
        found: all the tensors of the network's table.
        expected: the shape of every tensor that the network has, by the same names.
        remedy: what to do where they differ.

    Raises:
        InputError: tensors that are missing, too many, of another shape, of a type that weights do not have, or that
            hold numbers which are not finite.
    """
    missing = [f"{name} {list(expected[name])}" for name in expected if name not in found]
    unexpected = [f"{name} {list(found[name].shape)}" for name in found if name not in expected]
    if missing or unexpected:
        parts = [
            f"{verb} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            for verb, names in (("lacks", missing), ("also holds", unexpected))
            if names
        ]
        raise InputError(f"{path}: {' and '.join(parts)}, expected {len(expected)} tensors; {remedy}")
    num = sum(math.prod(shape) for shape in expected.values())
    check_memory(f"{path}: its {num:,} parameters in float32", 4 * num, "use a machine with more")
    weights: dict[str, torch.Tensor] = {}
    for name, shape in expected.items():
        tensor = found[name]
        if tuple(tensor.shape) != shape:
            raise InputError(f"{path}: {name} has shape {list(tensor.shape)}, expected {list(shape)}; {remedy}")
        if tensor.dtype not in _WEIGHT_TYPES or tensor.layout != torch.strided or tensor.device.type != "cpu":
            kind = f"{tensor.dtype}".removeprefix("torch.")
            raise InputError(
                f"{path}: {name} is of type {kind} ({tensor.layout}, {tensor.device}), expected a dense tensor of "
                "floating-point numbers; save the weights again in float32"
            )
        weight = tensor.detach().to(torch.float32).contiguous()
        # A sum of float32 numbers cannot overflow float64, and needs no second copy of them.
        if not math.isfinite(weight.sum(dtype=torch.float64).item()):
            raise InputError(
                f"{path}: {name} holds values that are not finite, expected numbers: the training diverged, or the "
                "file is damaged; choose an earlier checkpoint"
            )
        weights[name] = weight
    return weights
