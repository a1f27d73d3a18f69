"""A run in shards where it is: which are done is what lies there, and there is no list that could be wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from commands.program import say
from diffusion.errors import InputError
from diffusion.json_text import MAX_JSON_BYTES
from diffusion.number_checks import is_whole, shown
from diffusion.process import SampleShape
from runtime.formats.run_manifest import MANIFEST, NonFiniteSample
from runtime.formats.shard_record import RECORD_REMEDY, ShardRecord
from runtime.runs.journal import Journal
from runtime.runs.places import Place
from runtime.runs.shard_files import SHARD_FORMATS, content_facts, file_name, kept_indices, read_shard, shard_shape
from runtime.runs.shards import Shard, ShardPlan
from runtime.runs.store import Store, open_store

_JOURNAL = ".part"


def identity_sha256(identity: dict[str, Any]) -> str:
    """What the parts of a run name it by."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode("ascii")).hexdigest()


@dataclass(frozen=True)
class ShardFolder:
    """Where shards of one run are, and perhaps not all of them yet.

    Attributes:
        store: of its files.
        identity: of the run, as its `run.json` has it.
        plan: its shards.
        shape: of one sample.
    """

    store: Store
    identity: dict[str, Any]
    plan: ShardPlan
    shape: SampleShape

    @property
    def format(self) -> str:
        """One of `SHARD_FORMATS`."""
        return str(self.identity["format"])

    def file(self, shard: Shard) -> str:
        """Name of what holds a shard's samples."""
        return file_name(shard, self.format)

    def journal(self, shard: Shard) -> Journal:
        """Of a shard that is being drawn."""
        height, width, channels = self.shape.height, self.shape.width, self.shape.channels
        file = self.store.growing(f".{shard.name}{_JOURNAL}")
        return Journal(file, identity_sha256(self.identity), shard.first, (height, width, channels))

    def publish(
        self, shard: Shard, indices: list[int], images: np.ndarray, non_finite: tuple[NonFiniteSample, ...]
    ) -> ShardRecord:
        """Write a shard and, once that is there for good, its record. Raises InputError if it cannot be written."""
        file, name = self.file(shard), _record_name(shard)
        self.store.remove(name)  # of a shard that is being replaced
        num_bytes, sha256 = self.store.write_shard(file, self.format, indices, images)
        digest = identity_sha256(self.identity)
        record = ShardRecord(digest, shard.first, shard.num, file, num_bytes, sha256, non_finite)
        self.store.write(name, record.to_text().encode("ascii"))
        return record

    def record(self, shard: Shard, verify: bool = False) -> ShardRecord:
        """What a shard that is done holds.

        Args:
            shard: of the plan.
            verify: whether its samples are read, and compared with the hash.

        Raises:
            InputError: it is not done, damaged, or of another run.
        """
        name = _record_name(shard)
        return self._checked(shard, self.store.read([name])[name], self.store.listing(shard.name), verify)

    def images(self, shard: Shard, record: ShardRecord) -> np.ndarray:
        """The samples of a shard that holds some, uint8 [n, H, W, C]. Raises InputError as `read_shard`."""
        with self.store.reading(self.file(shard)) as path:
            return read_shard(path, self.format, kept_indices(shard, record), self.shape)

    def shape_of(self, shard: Shard, record: ShardRecord) -> SampleShape:
        """The shape of the samples in a shard that holds some. Raises InputError as `read_shard`."""
        with self.store.reading(self.file(shard)) as path:
            return shard_shape(path, self.format, kept_indices(shard, record))

    def tidy(self, done: Iterable[Shard]) -> None:
        """Remove the journals of shards that are done: a kill came between. Raises InputError as `Journal.remove`."""
        left = {name.partition(_JOURNAL)[0] for name in self.store.listing(".shard-") if _JOURNAL in name}
        for shard in done:
            if f".{shard.name}" in left:
                self.journal(shard).remove()

    def done(
        self, shards: Sequence[Shard] | ShardPlan, verify: bool = False, say_damage: bool = True
    ) -> dict[Shard, ShardRecord]:
        """Those of `shards` that are done.

        Args:
            shards: of the plan.
            verify: as of `record`.
            say_damage: whether the user is told of those that are damaged.

        Raises:
            InputError: a shard of another run, or files that cannot be listed.
        """
        sizes = self.store.listing(shards[0].name if len(shards) == 1 else "shard-")
        if isinstance(shards, ShardPlan):  # which somebody else's run.json may have made of millions
            with_record = shards.named(name.removesuffix(".json") for name in sizes if name.endswith(".json"))
        else:
            with_record = [shard for shard in shards if _record_name(shard) in sizes]
        names = [_record_name(shard) for shard in with_record]
        contents = self.store.read([name for name in names if sizes[name] <= MAX_JSON_BYTES])
        found = {}
        for shard in with_record:
            try:
                found[shard] = self._checked(shard, contents.get(_record_name(shard)), sizes, verify)
            except ForeignShardError:
                raise
            except InputError as error:
                if say_damage:
                    say(f"note: {error}")
        return found

    def _checked(
        self, shard: Shard, content: bytes | InputError | None, sizes: Mapping[str, int], verify: bool
    ) -> ShardRecord:
        place, file = self.store.place(_record_name(shard)), self.file(shard)
        if content is None:
            raise InputError(f"{place}: is too large for a record; {RECORD_REMEDY}")
        if isinstance(content, InputError):
            raise content
        record = ShardRecord.parse(content, place)
        if record.identity_sha256 != identity_sha256(self.identity):
            raise ForeignShardError(f"{place}: is of another run than {self.store.place(MANIFEST)} says; move it away")
        for name, found, expected in (
            ("first", record.first, shard.first),
            ("num", record.num, shard.num),
            ("file", record.file, file),
        ):
            if found != expected:
                raise InputError(f"{place}: {name} is {found!r}, expected {expected!r}; --resume draws the shard again")
        num_kept = shard.num - len(record.non_finite)
        whole = sizes.get(file, 0) == (num_kept if self.format == "png" else record.num_bytes)
        if whole and verify:
            try:
                with self.store.reading(file) as path:
                    whole = content_facts(path) == (record.num_bytes, record.sha256)
            except OSError as error:
                raise InputError(
                    f"{self.store.place(file)}: cannot be read ({error.strerror}); --resume draws it again"
                ) from None
        if not whole:
            raise InputError(
                f"{self.store.place(file)}: is damaged, it is not what {shard.name}.json says; --resume draws it again"
            )
        return record


def find_shards(place: Place) -> tuple[ShardFolder, dict[Shard, ShardRecord]]:
    """The run in shards that a place holds, with a shape that is not known yet, and the shards that are done.

    Raises:
        InputError: it holds no such run.
        DeviceUnavailableError: as `open_store`.
    """
    store = open_store(place)
    manifest = store.manifest()
    if manifest is None:
        raise InputError(f"{place}: holds no {MANIFEST}, expected the folder of a run in shards")
    numbers = []
    for name, lowest in (("start", 0), ("num", 1), ("shard_size", 1), ("batch_size", 1)):
        value = manifest.identity.get(name)
        if not is_whole(value) or value < lowest:
            raise InputError(
                f"{store.place(MANIFEST)}: its {name} is {shown(value)}, expected a whole number of at least {lowest}, "
                "as of a run in shards; `python -m runtime.sample --shard-size` makes one"
            )
        numbers.append(int(value))
    format_ = manifest.identity.get("format")
    if format_ not in SHARD_FORMATS:
        raise InputError(
            f"{store.place(MANIFEST)}: its format is {shown(format_)}, expected npz, png or tar; move it away"
        )
    try:
        plan = ShardPlan(*numbers)
    except InputError as error:
        raise InputError(f"{store.place(MANIFEST)}: {error}") from None
    folder = ShardFolder(store, manifest.identity, plan, SampleShape(1, 1, 1))
    return folder, folder.done(plan)


def _record_name(shard: Shard) -> str:
    return f"{shard.name}.json"


class ForeignShardError(InputError):
    """A shard of another run, which is neither used nor replaced."""
