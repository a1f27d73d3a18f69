"""`train.json` in a checkpoint folder: the process a network was trained with, and how it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commands.file_sets import FileSet
from commands.whole_files import write_whole_text
from diffusion.process import Process
from runtime.formats.digest import sealed_text
from runtime.formats.fields import read_fields

TRAIN_JSON = "train.json"
TRAIN_FORMAT = 2
UNDIGESTED_TRAIN_FORMAT = 1
"""Of earlier versions: it has no digest, and is read."""
REMEDY = "copy or train the checkpoint again"
METRICS, SAMPLES = "metrics.jsonl", "samples.png"

_ENTRIES = ("model_index.json", "unet", "scheduler", TRAIN_JSON, METRICS, SAMPLES)
_CONFIG_SHA256 = "config_sha256"
_OWN = ("format", "process", _CONFIG_SHA256)


def checkpoint_files(folder: Path) -> FileSet:
    """What `train.run` publishes in a folder, all at once."""
    return FileSet(folder, "checkpoint", _ENTRIES)


@dataclass(frozen=True)
class TrainRecord:
    """What stands in `train.json`.

    Attributes:
        process: what the network was trained to do; it says what diffusers' files cannot.
        facts: configuration, data, result and versions, for people and for a resumed run.
        config_sha256: of the network's config.json, which says what is computed with the weights; None where it was
            not written, as by earlier versions.
        has_digest: whether the file has one; those of earlier versions have none.
    """

    process: Process
    facts: Mapping[str, Any] = field(default_factory=dict)
    config_sha256: str | None = None
    has_digest: bool = True

    def write(self, folder: Path) -> None:
        """Write it, whole. Raises InputError if the folder cannot be written."""
        of_network = {} if self.config_sha256 is None else {_CONFIG_SHA256: self.config_sha256}
        content = {"format": TRAIN_FORMAT, "process": self.process.to_json(), **of_network, **self.facts}
        write_whole_text(folder / TRAIN_JSON, sealed_text(content))

    @classmethod
    def read(cls, folder: Path) -> TrainRecord | None:
        """What `write` wrote; None where there is no such file.

        Raises:
            InputError: another file of this name, of another version or changed, or a process that makes no sense.
        """
        path = checkpoint_files(folder).current(TRAIN_JSON)
        if not path.exists():
            return None
        fields = read_fields(path, TRAIN_FORMAT, REMEDY, undigested=UNDIGESTED_TRAIN_FORMAT)
        process = Process.from_json(fields.values.get("process"), str(path))
        facts = {name: value for name, value in fields.values.items() if name not in _OWN}
        has_digest = fields.values["format"] == TRAIN_FORMAT
        return cls(process, facts, fields.optional(_CONFIG_SHA256, str), has_digest)
