"""The weights of a checkpoint folder as tensors: read, checked one by one, put into diffusers' network.

Like every `torch_*.py` here it imports torch, so nothing imports it before it is asked for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DModel

from commands.errors import reason
from diffusion.errors import InputError
from runtime.engines.checkpoint_weights import find_weights, hash_of_weights, read_weight_file
from runtime.engines.torch_files import load_pickle, load_safetensors

# What the layers of attention were called before diffusers 0.15, as in the published ddpm-cifar10-32.
_OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# diffusers turns any other type into float32 too: numbers that are no weights, or weights without their scales.
_WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, eq=False)
class Weights:
    """The tensors of a checkpoint.

    Attributes:
        source: what to call them in an error.
        tensors: as the files hold them, by name.
        sha256: see `checkpoint_weights.hash_of_weights`.
    """

    source: Path
    tensors: Mapping[str, torch.Tensor]
    sha256: str


def load_weights(folder: Path, allow_pickle: bool) -> Weights:
    """Read the weights that diffusers would read from `unet/`.

    Raises:
        InputError: as `checkpoint_weights.find_weights`; files that are truncated or no weights; shards that do not
            hold what their index says.
    """
    files = find_weights(folder, allow_pickle)
    tensors: dict[str, torch.Tensor] = {}
    found: dict[str, str] = {}  # the file of every tensor
    hashes = {}
    for path in files.paths:
        content = read_weight_file(path)
        hashes[path.name] = hashlib.sha256(content).hexdigest()
        for name, tensor in _parse_weights(path, content).items():
            if name in found:
                raise InputError(
                    f"{files.source}: {name!r} is in {found[name]} and in {path.name}, expected one of them; "
                    "copy the checkpoint again, or save it again with diffusers"
                )
            tensors[name], found[name] = tensor, path.name
    for name, place in (files.places or {}).items():
        if found.get(name) != place:
            there = found.get(name, "none of the files")
            raise InputError(
                f"{files.source}: says that {name!r} is in {place}, but it is in {there}; "
                "copy the checkpoint again, or save it again with diffusers"
            )
    return Weights(files.source, tensors, hash_of_weights(hashes))


def _parse_weights(path: Path, content: bytes) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_safetensors(path, content, "copy or train the checkpoint again")
    try:
        state = load_pickle(path, content, "copy or train the checkpoint again")
    except InputError:
        raise
    except Exception as error:  # what a damaged pickle raises is anybody's guess
        raise InputError(
            f"{path}: found {len(content)} bytes, expected a pickle that holds tensors and nothing else "
            f"({reason(error)}); copy or train the checkpoint again"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise InputError(f"{path}: found {type(state).__name__}, expected a table of tensors; save it again")
    return state


def fill(unet: UNet2DModel, weights: Weights) -> None:
    """Give the network these weights as float32, without gradients.

    Raises:
        InputError: tensors that are missing, too many, of another shape or of a type that weights do not have, or
            numbers that are not finite.
    """
    path = weights.source
    expected = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    odd = "the weights and config.json are not of one checkpoint: copy or train it again"
    found: dict[str, torch.Tensor] = {}
    for name, tensor in weights.tensors.items():
        current = _current_name(name)
        if current in found:
            raise InputError(f"{path}: holds {current!r} under its old name too, expected one of them; {odd}")
        found[current] = tensor
    for verb, names in (("lacks", set(expected) - set(found)), ("also holds", set(found) - set(expected))):
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(
                f"{path}: {verb} {min(names)!r}{others}, expected {len(expected)} tensors by config.json; {odd}"
            )
    for name, shape in expected.items():
        tensor = found[name]
        if tuple(tensor.shape) != shape:
            raise InputError(f"{path}: {name} has shape {tuple(tensor.shape)}, expected {shape}; {odd}")
        if tensor.dtype not in _WEIGHT_TYPES or tensor.layout != torch.strided or tensor.device.type != "cpu":
            kind = f"{tensor.dtype}".removeprefix("torch.")
            known = ", ".join(f"{each}".removeprefix("torch.") for each in _WEIGHT_TYPES)
            raise InputError(
                f"{path}: {name} is of type {kind} ({tensor.layout}, {tensor.device}), expected a dense tensor of "
                f"{known}; save the checkpoint again in float32"
            )
        found[name] = tensor.detach().to(torch.float32).contiguous()
        # A sum of float32 numbers cannot overflow float64, and needs no second copy of them.
        if not math.isfinite(found[name].sum(dtype=torch.float64).item()):
            raise InputError(
                f"{path}: {name} holds values that are not finite, expected numbers: the training diverged; train again"
            )
    unet.load_state_dict(found, strict=True, assign=True)
    unet.requires_grad_(False)


def _current_name(name: str) -> str:
    scope, *last = name.rsplit(".", maxsplit=2)
    if len(last) == 2 and "attentions" in scope.split("."):
        layer, kind = last
        return f"{scope}.{_OLD_ATTENTION_NAMES.get(layer, layer)}.{kind}"
    return name
