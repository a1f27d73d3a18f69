"""One file of tensors: a pickle of PyTorch, of which nothing is executed, or safetensors."""

from __future__ import annotations

import hashlib
import io
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from commands.errors import reason
from diffusion.errors import InputError
from runtime.engines.checkpoint_weights import read_weight_file
from runtime.engines.torch_files import load_pickle, load_safetensors

_AGAIN = "copy it again"
# What PyTorch before 1.6 wrote is a file of so many pickles and then the numbers.
_PICKLES = 5
# Of one that is parsed: names and shapes, while the numbers lie beside it.
_MAX_PICKLE_BYTES = 2**26
# Of classes that the pickle of a table of tensors names: PyTorch's reader makes these itself.
_OF_TENSORS = ("torch._utils", "torch", "collections", "torch.storage", "torch.serialization")


@dataclass(frozen=True, eq=False)
class StateFile:
    """The content of a checkpoint file.

    Attributes:
        path: of the file.
        content: tables, lists, tensors and plain values, nested as they were saved.
        sha256: of the file's bytes.
    """

    path: Path
    content: Any
    sha256: str

    def table(self, *keys: str | int) -> dict[str, torch.Tensor] | None:
        """The table of tensors found under these keys, one inside the other; None if there is no such table."""
        found: Any = self.content
        for key in keys:
            if isinstance(found, torch.Tensor):  # which warns of keys that are no indices
                return None
            try:
                found = found[key]
            except (KeyError, IndexError, TypeError):
                return None
        if not isinstance(found, Mapping) or not found:
            return None
        if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items()):
            return None
        return dict(found)

    @property
    def names(self) -> frozenset[str]:
        """Of the root: the names of its tensors or of its parts."""
        return frozenset(map(str, self.content)) if isinstance(self.content, Mapping) else frozenset()

    def summary(self) -> str:
        """What the file holds, for an error."""
        if not isinstance(self.content, Mapping):
            return f"holds {type(self.content).__name__}"
        names = list(map(str, self.content))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f"holds {', '.join(names[:3]) or 'nothing'}{more}"


def read_state_file(path: Path) -> StateFile:
    """Read a file of tensors: `….safetensors`, or what `torch.save` wrote.

    Of a pickle tensors and plain values alone are read (`weights_only`), so that no code in it runs.

    Raises:
        InputError: a file that cannot be read, that holds other objects, or that is damaged.
    """
    if re.search(r"\.(?:index|meta|data-\d+-of-\d+)$", path.name):
        raise InputError(
            f"{path}: is a part of a TensorFlow checkpoint, expected PyTorch's; convert it with scripts/convert.py of "
            "pesser/pytorch_diffusion, which also publishes Ho et al.'s models converted"
        )
    content = read_weight_file(path)
    sha256 = hashlib.sha256(content).hexdigest()
    if path.suffix == ".safetensors":
        return StateFile(path, load_safetensors(path, content, _AGAIN), sha256)
    try:
        return StateFile(path, load_pickle(path, content, _AGAIN), sha256)
    except InputError:
        raise
    except Exception as error:  # what a damaged pickle raises is anybody's guess
        raise _not_tensors(path, content, error) from error


def _not_tensors(path: Path, content: bytes, error: Exception) -> InputError:
    classes = sorted({name for name in _named_classes(content) if name.rpartition(".")[0] not in _OF_TENSORS})
    if any("persistence" in name or name.startswith(("dnnlib", "torch_utils")) for name in classes):
        return InputError(
            f"{path}: is a pickle of code and network of NVIDIA's EDM or StyleGAN, expected a DDPM's tensors: EDM "
            "conditions on the noise level, not on timesteps, and its pickle runs code; choose a DDPM checkpoint"
        )
    if classes:
        more = f" and {len(classes) - 3} more" if len(classes) > 3 else ""
        return InputError(
            f"{path}: holds objects of {', '.join(classes[:3])}{more}, expected tensors and plain values alone, since "
            "nothing else is read from a pickle; save the network's state_dict by itself, where you trust the file"
        )
    return InputError(
        f"{path}: found {len(content)} bytes, expected a file that torch.save wrote ({reason(error)}); {_AGAIN}"
    )


def _named_classes(content: bytes) -> Iterator[str]:
    """The names of the classes and functions that a pickle asks for; it is parsed and not executed."""
    pickled = content
    if zipfile.is_zipfile(io.BytesIO(content)):
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                entry = next(each for each in archive.infolist() if each.filename.endswith("data.pkl"))
                if entry.file_size > _MAX_PICKLE_BYTES:
                    return
                pickled = archive.read(entry)
        except (zipfile.BadZipFile, StopIteration, OSError, NotImplementedError, RuntimeError):
            return
    stream, texts = io.BytesIO(pickled), list[str]()
    try:
        for _ in range(_PICKLES):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    yield str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL" and len(texts) == 2:
                    yield ".".join(texts)
                elif isinstance(argument, str):
                    texts = [*texts[-1:], argument]
    except Exception:  # damaged, or of no pickle at all: what was found until then is told
        return
