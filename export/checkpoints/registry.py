"""The formats of other projects' checkpoints: how each is recognized by its content, its reader, its flags.

A new format is a file that defines a `Format`, and its place in `FORMATS`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.errors import InputError
from diffusion.number_checks import shown
from diffusion.regular_files import open_regular
from export.checkpoints.flags import CheckpointFlag, GivenFlags, add_flags
from export.checkpoints.formats import Format
from export.checkpoints.ho import HO
from export.checkpoints.lucidrains import LUCIDRAINS
from export.checkpoints.openai import OPENAI

if TYPE_CHECKING:
    from export.checkpoints.checkpoint import ForeignCheckpoint

FORMATS: tuple[Format, ...] = (OPENAI, HO, LUCIDRAINS)
FILE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_MODEL = "model"


def is_foreign(path: Path) -> bool:
    """Whether a `--checkpoint` is one file, as other projects save theirs, and not a diffusers folder."""
    return not path.is_dir() and (path.exists() or path.suffix in FILE_SUFFIXES)


def check_foreign(path: Path, flags: Mapping[str, object], allow_pickle: bool) -> None:
    """Find out what is known before torch is imported.

    Args:
        path: of the file.
        flags: of the checkpoint's project, by name, and `model`.
        allow_pickle: whether a pickle may be read.

    Raises:
        InputError: no such file, a pickle without permission, or a flag that no project has.
    """
    open_regular(path, "expected a checkpoint; name another").close()
    if path.suffix != ".safetensors" and not allow_pickle:
        raise InputError(
            f"{path}: is a pickle, expected safetensors; give --allow-pickle if you trust where it comes from (it is "
            "read with weights_only: tensors alone, no code runs)"
        )
    known = {flag.name for kind in FORMATS for flag in kind.flags} | {_MODEL}
    unknown = sorted(set(flags) - known)
    if unknown:
        raise InputError(f"no checkpoint has a flag {unknown[0]!r}, expected one of {', '.join(sorted(known))}")
    model, names = flags.get(_MODEL), [name for kind in FORMATS for name in kind.models]
    if model is not None and model not in names:
        raise InputError(f"--model is {shown(model)}, expected one of {', '.join(names)}")


def read_foreign(path: Path, flags: Mapping[str, object], allow_pickle: bool) -> ForeignCheckpoint:
    """Read a checkpoint of another project.

    Args:
        path, flags, allow_pickle: as of `check_foreign`.

    Raises:
        InputError: as `check_foreign`; a file that is damaged or of no known format; flags that are missing, of another
            project, or contradict the tensors.
    """
    check_foreign(path, flags, allow_pickle)
    from export.checkpoints.other_networks import refuse_other_network
    from export.checkpoints.state_file import read_state_file

    state = read_state_file(path)
    refuse_other_network(state)
    for kind in FORMATS:
        if kind.recognizes(state):
            return kind.read(state, _given(path, kind, flags))
    expected = ", ".join(kind.name for kind in FORMATS)
    raise InputError(
        f"{path}: {state.summary()}, expected a checkpoint of {expected}, or the folder of a diffusers pipeline; "
        "name another checkpoint"
    )


def add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every format, a group for each; one that several have stands in the first."""
    add_flags(
        parser,
        "checkpoints of other projects",
        "A .pt, .ckpt or .safetensors file. What its tensors do not say is told by the flags it was trained with.",
        [CheckpointFlag(_MODEL, str, "a published model, instead of flags")],
    )
    seen: set[str] = set()
    for kind in FORMATS:
        shared = [flag.name for flag in kind.flags if flag.name in seen]
        description = f"Published models: {', '.join(kind.models)}." if kind.models else ""
        if shared:
            description += f" Takes {', '.join('--' + name for name in shared)}, too."
        add_flags(parser, kind.name, description.strip(), [flag for flag in kind.flags if flag.name not in seen])
        seen |= {flag.name for flag in kind.flags}


def _given(path: Path, kind: Format, flags: Mapping[str, object]) -> GivenFlags:
    """Raises InputError if a flag is of another project, or contradicts the published model that is named."""
    typed = {name: value for name, value in flags.items() if name != _MODEL}
    model = flags.get(_MODEL)
    if model is not None and model not in kind.models:
        instead = f"name one of {', '.join(kind.models)}" if kind.models else "leave it out, and give flags"
        raise InputError(f"--model {model} is not of {kind.name}, but {path} is; {instead}")
    known = {flag.name: flag for flag in kind.flags}
    others = sorted(set(typed) - set(known))
    if others:
        raise InputError(f"--{others[0]} is no flag of {kind.name}, whose checkpoint {path} is; leave it out")
    values = {name: known[name].value(value) for name, value in typed.items()}
    if model is None:
        return GivenFlags(values, None, frozenset(values))
    published = kind.models[str(model)]
    for name, value in values.items():
        if name in published and published[name] != value:
            raise InputError(
                f"--{name} is {value}, but --model {model} was trained with {published[name]}; leave one of them out"
            )
    return GivenFlags({**published, **values}, str(model), frozenset(values))
