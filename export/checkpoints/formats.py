"""What an entry of the registry is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from export.checkpoints.flags import CheckpointFlag, GivenFlags

if TYPE_CHECKING:
    from export.checkpoints.checkpoint import ForeignCheckpoint
    from export.checkpoints.state_file import StateFile


@dataclass(frozen=True)
class Format:
    """How the checkpoints of one project are read.

    Its module imports neither torch nor diffusers at its top, so that `--help` does not wait for them.

    Attributes:
        name: the project, for messages.
        recognizes: whether a file is of this format, by what it holds; its name does not count.
        read: the network and its process.
        flags: what the tensors do not say, by the project's own names.
        models: published models by name: the flags they were trained with.
    """

    name: str
    recognizes: Callable[[StateFile], bool]
    read: Callable[[StateFile, GivenFlags], ForeignCheckpoint]
    flags: tuple[CheckpointFlag, ...]
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
