"""`train.json` in a checkpoint folder: the process a network was trained with, and how it was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commands.file_sets import FileSet
from commands.whole_files import write_whole_text
from diffusion.process import Process
from runtime.formats.fields import read_fields

TRAIN_JSON = "train.json"
TRAIN_FORMAT = 1
METRICS, SAMPLES = "metrics.jsonl", "samples.png"
_ENTRIES = ("model_index.json", "unet", "scheduler", TRAIN_JSON, METRICS, SAMPLES)


def checkpoint_files(folder: Path) -> FileSet:
    """What `train.run` publishes in a folder, all at once."""
    return FileSet(folder, "checkpoint", _ENTRIES)


@dataclass(frozen=True)
class TrainRecord:
    """What stands in `train.json`.

    Attributes:
        process: what the network was trained to do; it says what diffusers' files cannot.
        facts: configuration, data, result and versions, for people and for a resumed run.
    """

    process: Process
    facts: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it, whole. Raises InputError if the folder cannot be written."""
        content = {"format": TRAIN_FORMAT, "process": self.process.to_json(), **self.facts}
        write_whole_text(folder / TRAIN_JSON, json.dumps(content, indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> TrainRecord | None:
        """What `write` wrote; None where there is no such file.

        Raises:
            InputError: another file of this name, of another version, or a process that makes no sense.
        """
        path = checkpoint_files(folder).current(TRAIN_JSON)
        if not path.exists():
            return None
        values = read_fields(path, TRAIN_FORMAT, "copy or train the checkpoint again").values
        facts = {name: value for name, value in values.items() if name not in ("format", "process")}
        return cls(Process.from_json(values.get("process"), str(path)), facts)
