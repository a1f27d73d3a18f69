"""`shard-….json` beside the samples of a shard: with it, and not before, the shard is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.formats.digest import sealed_text
from runtime.formats.fields import parse_fields
from runtime.formats.run_manifest import NonFiniteSample, read_non_finite

SHARD_FORMAT = 2
RECORD_REMEDY = "remove it, and --resume draws the shard again"


@dataclass(frozen=True)
class ShardRecord:
    """What a shard holds.

    Attributes:
        identity_sha256: of the identity of its run, see `identity_sha256`; a shard of another run is told by it.
        first: sample index of its first sample.
        num: samples, those that broke among them.
        file: name of the file, or of the folder of pictures, beside the record.
        num_bytes: of the file; of a folder's files together.
        sha256: of the file's bytes; of a folder as `runtime.runs.shard_files.content_facts` has it.
        non_finite: the samples that broke, which are not in the file.
    """

    identity_sha256: str
    first: int
    num: int
    file: str
    num_bytes: int
    sha256: str
    non_finite: tuple[NonFiniteSample, ...] = ()

    def to_text(self) -> str:
        """The content of its file."""
        return sealed_text(self._to_json())

    def _to_json(self) -> dict[str, Any]:
        return vars(self) | {"format": SHARD_FORMAT, "non_finite": [vars(sample) for sample in self.non_finite]}

    @classmethod
    def parse(cls, content: bytes, place: str) -> ShardRecord:
        """The inverse of `to_text`.

        Args:
            content: of the file.
            place: of the file, for the error.

        Raises:
            InputError: another file of this name, of another version or changed, or a field that makes no sense.
        """
        values = parse_fields(content, place, SHARD_FORMAT, RECORD_REMEDY)
        identity, sha256 = values.sha256("identity_sha256"), values.sha256("sha256")
        file = values.get("file", str)
        if Path(file).name != file:
            raise values.wrong("file", file, "the name of a file in this folder")
        first, num, num_bytes = (values.get(name, int) for name in ("first", "num", "num_bytes"))
        for name, value, lowest in (("first", first, 0), ("num", num, 1), ("num_bytes", num_bytes, 0)):
            if value < lowest:
                raise values.wrong(name, value, f"at least {lowest}")
        non_finite = read_non_finite(values)
        indices = [sample.sample_index for sample in non_finite]
        if indices != sorted(set(indices)) or any(not first <= index < first + num for index in indices):
            raise values.wrong("non_finite", indices, f"ascending sample indices from {first} to {first + num - 1}")
        record = cls(identity, first, num, file, num_bytes, sha256, non_finite)
        values.check_names(record._to_json())
        return record
