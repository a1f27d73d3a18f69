"""The state of unfinished work, as `torch.save` writes it: read whole, or refused in one line."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commands.errors import reason
from diffusion.errors import InputError
from diffusion.number_checks import shown
from runtime.engines.checkpoint_weights import read_weight_file


def write_state(temporary: Path, state: Mapping[str, Any]) -> None:
    """Write what `read_state` reads, `format` among it, into a file that takes its name later.

    Raises:
        OSError: the disk does not take it.
    """
    import torch

    try:
        torch.save(dict(state), temporary)
    except RuntimeError as error:  # how torch reports a full disk
        raise OSError(str(error).splitlines()[0]) from error


def read_state(path: Path, version: int, remedy: str) -> dict[str, Any]:
    """A saved state: tensors, tables and plain values by name.

    Args:
        path: of the file.
        version: of its format.
        remedy: the end of the line for a file that cannot be used.

    Raises:
        InputError: it cannot be read, was changed after it was written, or is of another format.
    """
    from runtime.engines.torch_files import load_pickle

    try:
        content = read_weight_file(path, remedy)
        state = load_pickle(path, content, remedy)
        # PyTorch writes a checksum of each tensor, and does not look at it when it reads.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise InputError(f"{path}: was changed after it was written (its part {shown(damaged)}); {remedy}")
    except InputError:
        raise
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, KeyError …
        raise InputError(f"{path}: cannot be read ({reason(error)}); {remedy}") from None
    found = state.get("format") if isinstance(state, dict) else type(state).__name__
    if not isinstance(state, dict) or found != version:
        raise InputError(f"{path}: state format is {shown(found)}, this version reads {version}; {remedy}")
    return state
