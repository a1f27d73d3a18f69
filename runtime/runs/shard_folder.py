"""The folder of a run in shards: which are done is what lies there, and there is no list that could be wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from commands.joint_writers import joint_writer
from commands.locks import sole_writer
from commands.program import say
from commands.whole_files import cannot_write
from diffusion.errors import InputError
from diffusion.number_checks import is_whole, shown
from diffusion.process import SampleShape
from runtime.formats.run_manifest import MANIFEST, NonFiniteSample, RunManifest
from runtime.formats.shard_record import ShardRecord
from runtime.runs.folder import RunFolder
from runtime.runs.journal import Journal
from runtime.runs.shard_files import SHARD_FORMATS, content_facts, file_name, write_shard
from runtime.runs.shards import Shard, ShardPlan

_FILES = ("shard-[0-9]*-[0-9]*", ".shard-[0-9]*-[0-9]*")
# A worker that was killed holds its lock for the moment in which it ends.
_LOCK_SECONDS = 10.0


def identity_sha256(identity: dict[str, Any]) -> str:
    """What the parts of a run name it by."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode("ascii")).hexdigest()


@dataclass(frozen=True)
class ShardFolder:
    """A folder that holds shards of one run, and perhaps not all of them yet.

    Attributes:
        path: of the folder.
        identity: of the run, as its `run.json` has it.
        plan: its shards.
        shape: of one sample.
    """

    path: Path
    identity: dict[str, Any]
    plan: ShardPlan
    shape: SampleShape

    @property
    def format(self) -> str:
        """One of `SHARD_FORMATS`."""
        return str(self.identity["format"])

    def file(self, shard: Shard) -> Path:
        """Where a shard's samples are."""
        return self.path / file_name(shard, self.format)

    def record_file(self, shard: Shard) -> Path:
        """Where a shard's record is."""
        return self.path / f"{shard.name}.json"

    def journal(self, shard: Shard) -> Journal:
        """Of a shard that is being drawn."""
        height, width, channels = self.shape.height, self.shape.width, self.shape.channels
        path = self.path / _journal_name(shard)
        return Journal(path, identity_sha256(self.identity), shard.first, (height, width, channels))

    @contextlib.contextmanager
    def claimed(self, resume: bool, overwrite: bool) -> Iterator[None]:
        """Be one of the programs that draw this run here; others may, and any other run is kept away.

        Raises:
            InputError: another run's samples are here, foreign files of the same names or a manifest that is not one,
                another program draws another run, or the folder cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file, expected a folder; give another --out")

        def prepare(alone: bool) -> None:
            found = RunManifest.read(self.path)
            if found is not None and found.identity == self.identity:
                return
            if not alone and (overwrite or found is None):
                what = "has removed its run.json" if found is None else "is drawing another run into it"
                raise InputError(
                    f"{self.path}: another program {what}; wait for it, or choose another place with --out"
                )
            RunFolder.claim(self.path, self.identity, list(_FILES), resume, overwrite)

        with joint_writer(self.path / MANIFEST, prepare):
            yield

    @contextlib.contextmanager
    def drawing(self, shard: Shard) -> Iterator[None]:
        """Be the only one who draws a shard; what a killed program left of it is removed, but for its journal.

        Raises:
            InputError: another program is drawing it, or the folder cannot be written.
        """
        file = self.file(shard)
        with sole_writer(file, _LOCK_SECONDS):
            try:
                for left in self.path.glob(f".{shard.name}.*"):
                    if left.suffix in (".part", ".lock"):
                        continue
                    if left.is_dir():
                        shutil.rmtree(left)
                    else:
                        left.unlink()
            except OSError as error:
                raise cannot_write(self.path, error) from error
            yield

    def publish(
        self, shard: Shard, indices: list[int], images: np.ndarray, non_finite: tuple[NonFiniteSample, ...]
    ) -> ShardRecord:
        """Write a shard and, once that is on disk, its record. Raises InputError if it cannot be written."""
        file, record_file = self.file(shard), self.record_file(shard)
        try:
            record_file.unlink(missing_ok=True)  # of a shard that is being replaced
        except OSError as error:
            raise cannot_write(record_file, error) from error
        num_bytes, sha256 = write_shard(file, self.format, indices, images)
        record = ShardRecord(
            identity_sha256(self.identity), shard.first, shard.num, file.name, num_bytes, sha256, non_finite
        )
        record.write(record_file)
        return record

    def record(self, shard: Shard, verify: bool = False) -> ShardRecord:
        """What a shard that is done holds.

        Args:
            shard: of the plan.
            verify: whether its samples are read, and compared with the hash.

        Raises:
            InputError: it is not done, damaged, or of another run.
        """
        path, file = self.record_file(shard), self.file(shard)
        record = ShardRecord.read(path)
        if record.identity_sha256 != identity_sha256(self.identity):
            raise ForeignShardError(f"{path}: is of another run than {self.path / MANIFEST} says; move it away")
        for name, found, expected in (
            ("first", record.first, shard.first),
            ("num", record.num, shard.num),
            ("file", record.file, file.name),
        ):
            if found != expected:
                raise InputError(f"{path}: {name} is {found!r}, expected {expected!r}; --resume draws the shard again")
        try:
            if verify:
                num_bytes, sha256 = content_facts(file)
            elif file.is_dir():
                with os.scandir(file) as names:
                    whole = sum(1 for _ in names) == shard.num - len(record.non_finite)
                num_bytes, sha256 = (record.num_bytes if whole else -1), record.sha256
            else:
                num_bytes, sha256 = file.stat().st_size, record.sha256
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror}); --resume draws it again") from None
        if (num_bytes, sha256) != (record.num_bytes, record.sha256):
            raise InputError(f"{file}: is damaged, it is not what {path.name} says; --resume draws it again")
        return record

    def tidy(self, done: Iterable[Shard]) -> None:
        """Remove the journals of shards that are done: a kill came between. Raises InputError as `Journal.remove`."""
        left = {entry.name for entry in os.scandir(self.path) if entry.name.startswith(".")}
        for shard in done:
            if _journal_name(shard) in left:
                self.journal(shard).remove()

    def done(self, shards: Sequence[Shard], verify: bool = False, say_damage: bool = True) -> dict[Shard, ShardRecord]:
        """Those of `shards` that are done.

        Args:
            shards: of the plan.
            verify: as of `record`.
            say_damage: whether the user is told of those that are damaged.

        Raises:
            InputError: a shard of another run, or a folder that cannot be read.
        """
        try:
            names = {entry.name for entry in os.scandir(self.path)}
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror}); give another --out") from error
        found = {}
        for shard in shards:
            if self.record_file(shard).name not in names:
                continue
            try:
                found[shard] = self.record(shard, verify)
            except ForeignShardError:
                raise
            except InputError as error:
                if say_damage:
                    say(f"note: {error}")
        return found


def find_shards(path: Path) -> tuple[ShardFolder, dict[Shard, ShardRecord]]:
    """The run in shards that a folder holds, with a shape that is not known yet, and the shards that are done.

    Raises:
        InputError: it holds no such run.
    """
    manifest = RunManifest.read(path)
    if manifest is None:
        raise InputError(f"{path}: holds no {MANIFEST}, expected the folder of a run in shards")
    numbers = []
    for name, lowest in (("start", 0), ("num", 1), ("shard_size", 1), ("batch_size", 1)):
        value = manifest.identity.get(name)
        if not is_whole(value) or value < lowest:
            raise InputError(
                f"{path / MANIFEST}: its {name} is {shown(value)}, expected a whole number of at least {lowest}, as "
                "of a run in shards; `python -m runtime.sample --shard-size` makes one"
            )
        numbers.append(int(value))
    format_ = manifest.identity.get("format")
    if format_ not in SHARD_FORMATS:
        raise InputError(f"{path / MANIFEST}: its format is {shown(format_)}, expected npz, png or tar")
    plan = ShardPlan(*numbers)
    folder = ShardFolder(path, manifest.identity, plan, SampleShape(1, 1, 1))
    return folder, folder.done(list(plan))


def _journal_name(shard: Shard) -> str:
    return f".{shard.name}.part"


class ForeignShardError(InputError):
    """A shard of another run, which is neither used nor replaced."""
