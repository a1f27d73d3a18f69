"""`run.json` in an output folder: whose samples it holds, and how far they are."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from commands.whole_files import write_whole_text
from diffusion.number_checks import is_whole, shown
from runtime.formats.digest import sealed_text
from runtime.formats.fields import Fields, parse_fields, read_fields

MANIFEST = "run.json"
MANIFEST_FORMAT = 2
_REMEDY = "give another --out, or remove it"


@dataclass(frozen=True)
class NonFiniteSample:
    """A sample whose chain broke: where its prediction or its state was first NaN or infinite."""

    sample_index: int
    row: int
    timestep: int

    def __str__(self) -> str:
        return f"sample {self.sample_index} is not finite from row {self.row} (timestep {self.timestep}) on"


@dataclass(frozen=True)
class RunManifest:
    """What stands in `run.json`.

    Attributes:
        identity: everything that decides the samples and their files; equal identities mean equal samples.
        files: names of the files that hold results, relative to the folder; a trailing * stands for any.
        done: how many of the run's samples are finished and on disk, counted from the first; 0 in a run in shards,
            whose records say it.
        non_finite: those among them that broke and were not written; as `done`.
    """

    identity: dict[str, Any]
    files: tuple[str, ...]
    done: int = 0
    non_finite: tuple[NonFiniteSample, ...] = ()

    def write(self, folder: Path) -> None:
        """Write it, whole. Raises InputError if the folder cannot be written."""
        write_whole_text(folder / MANIFEST, self.to_text())

    def to_text(self) -> str:
        """The content of the file."""
        return sealed_text(self._to_json())

    def _to_json(self) -> dict[str, Any]:
        return {
            "format": MANIFEST_FORMAT,
            "done": self.done,
            "non_finite": [vars(sample) for sample in self.non_finite],
            "files": list(self.files),
            "identity": self.identity,
        }

    @classmethod
    def read(cls, folder: Path) -> RunManifest | None:
        """What `write` wrote; None where there is no such file.

        Raises:
            InputError: another file of this name, of another version or changed, or a field that makes no sense.
        """
        path = folder / MANIFEST
        if not os.path.lexists(path):
            return None
        return cls._of(read_fields(path, MANIFEST_FORMAT, _REMEDY))

    @classmethod
    def parse(cls, content: bytes, place: str) -> RunManifest:
        """As `read`, of the content of a file; `place` names it in errors."""
        return cls._of(parse_fields(content, place, MANIFEST_FORMAT, _REMEDY))

    @classmethod
    def _of(cls, values: Fields) -> RunManifest:
        identity = values.get("identity", dict, may_be_empty=True)
        done = values.get("done", int)
        most = identity.get("num", done)
        if not is_whole(most) or not 0 <= done <= most:
            raise values.wrong("done", done, f"0 to the run's num, {shown(most)}")
        manifest = cls(identity, _files(values), done, read_non_finite(values))
        values.check_names(manifest._to_json())
        return manifest


def _files(values: Fields) -> tuple[str, ...]:
    files = values.get("files", list, may_be_empty=True)
    for name in files:
        # Patterns of what may be removed: in this folder alone.
        if not isinstance(name, str) or Path(name).name != name or "**" in name:
            raise values.wrong("files", name, "names of files in this folder")
    return tuple(files)


def _is_count(value: object) -> bool:
    return is_whole(value) and 0 <= value < 2**64


def read_non_finite(values: Fields) -> tuple[NonFiniteSample, ...]:
    """The field `non_finite` of a manifest or of a shard's record. Raises InputError if it makes no sense."""
    names = {field.name for field in fields(NonFiniteSample)}
    samples = values.get("non_finite", list, may_be_empty=True)
    for each in samples:
        if not isinstance(each, dict) or each.keys() != names or not all(map(_is_count, each.values())):
            raise values.wrong("non_finite", each, f"whole numbers {', '.join(sorted(names))}")
    return tuple(NonFiniteSample(**each) for each in samples)
