"""Checkpoints that are something else than a DDPM's network: what each is, and why it is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from diffusion.errors import InputError
from export.checkpoints.state_file import StateFile


class _Other(NamedTuple):
    recognizes: Callable[[frozenset[str], StateFile], bool]
    what: str
    instead: str


def _starts(names: frozenset[str], *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in names)


_OTHERS = (
    _Other(
        lambda names, state: {"state", "param_groups"} <= names,
        "an optimizer's state (of training, with no network in it)",
        "the network's file that lies beside it, ema_*.pt rather than model*.pt",
    ),
    _Other(
        lambda names, state: (
            _starts(names, "input_blocks.") and _starts(names, "out.") and not _starts(names, "output_blocks.")
        ),
        "a classifier of guided-diffusion (EncoderUNetModel), which makes no images",
        "the diffusion model of the same resolution",
    ),
    _Other(
        lambda names, state: _starts(
            _all_names(state), "cond_stage_model.", "conditioner.", "transformer.resblocks.", "token_embedding."
        ),
        "a text-to-image model (Stable Diffusion's or GLIDE's layout), which needs the embedding of a text",
        "a pixel-space DDPM without text",
    ),
    _Other(
        lambda names, state: _starts(_all_names(state), "first_stage_model.", "model.diffusion_model."),
        "a latent-diffusion model, whose chain runs in the latent space of an autoencoder",
        "a pixel-space DDPM",
    ),
    _Other(
        lambda names, state: any(
            ".all_modules." in f".{name}" or name.endswith("sigmas") for name in _all_names(state)
        ),
        "a score network of score_sde (NCSN++ or DDPM++), conditioned on a noise level and not on timesteps 0..T−1",
        "a DDPM checkpoint",
    ),
    _Other(
        lambda names, state: any("map_noise." in name or "map_layer0." in name for name in _all_names(state)),
        "a network of EDM, conditioned on a noise level and not on timesteps 0..T−1",
        "a DDPM checkpoint",
    ),
)


def refuse_other_network(state: StateFile) -> None:
    """Raises InputError, saying what the file holds, if that is known and no DDPM."""
    for other in _OTHERS:
        if other.recognizes(state.names, state):
            raise InputError(f"{state.path}: is {other.what}; expected a DDPM's network: choose {other.instead}")


def _all_names(state: StateFile) -> frozenset[str]:
    """The names of the root and of the tables in it."""
    names = set(state.names)
    for key in state.names:
        names |= set(state.table(key) or ())
    return frozenset(names)
