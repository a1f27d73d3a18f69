"""A run in shards in a store of objects that fsspec reaches: `s3://`, `gs://`, and `memory://` of this process.

An object appears whole, so there are no temporary names. There are no locks either. What stands in for them: `run.json`
is created by one program, the others find it and compare; and the bytes of a shard depend on the run alone, so two
programs that draw the same one write the same.

Credentials, endpoints, retries and the abortion of an upload that failed are those of the store's own library.
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from commands.errors import DeviceUnavailableError, reason
from commands.whole_files import work_folder
from diffusion.errors import InputError
from diffusion.json_text import MAX_JSON_BYTES
from runtime.formats.run_manifest import MANIFEST, RunManifest
from runtime.formats.shard_record import RECORD_REMEDY
from runtime.runs.folder import refuse_claim
from runtime.runs.places import ObjectUrl
from runtime.runs.shard_files import write_shard
from runtime.runs.store import RUN_FILES, GrowingFile


class ObjectStore:
    """A `Store` of the objects whose URLs begin with one.

    Raises:
        DeviceUnavailableError: what reaches the store is not installed.
    """

    def __init__(self, url: ObjectUrl) -> None:
        import fsspec

        self._url = url
        try:
            # Others write here too: what was listed a moment ago is not what is there.
            self._files = fsspec.filesystem(url.scheme, use_listings_cache=False)
        except ImportError as error:
            package = "gcsfs" if url.scheme in ("gs", "gcs") else '"ddpm-rt[store]"'
            raise DeviceUnavailableError(f"{url}: {reason(error)}; pip install {package}") from error
        self._root = str(self._files._strip_protocol(str(url)))

    def place(self, name: str = "") -> str:
        """As `Store`."""
        return str(self._url / name if name else self._url)

    def manifest(self) -> RunManifest | None:
        """As `Store`."""
        size = self._find(MANIFEST).get(self._path(MANIFEST))
        if size is None:
            return None
        if size > MAX_JSON_BYTES:
            raise InputError(f"{self.place(MANIFEST)}: has {size} bytes, expected a small file; give another --out")
        content = self.read([MANIFEST])[MANIFEST]
        if isinstance(content, InputError):
            raise content
        return RunManifest.parse(content, self.place(MANIFEST))

    @contextlib.contextmanager
    def claimed(self, identity: dict[str, Any], resume: bool, overwrite: bool) -> Iterator[None]:
        """As `Store`."""
        found = self.manifest()
        if found is None or found.identity != identity:
            in_the_way = self._of_run(RUN_FILES) if found is None else []
            names = [self.place(self._name(path)) for path in in_the_way[:1]]
            refuse_claim(self.place(), found, identity, names, resume, overwrite)
            if found is not None:
                self._remove(self._of_run(found.files))
                self._remove([self._path(MANIFEST)])  # last: until then it is the other run
            with self._asked(MANIFEST, "written"), contextlib.suppress(FileExistsError):
                text = RunManifest(identity, RUN_FILES).to_text()
                self._files.pipe_file(self._path(MANIFEST), text.encode("ascii"), mode="create")
            self._check_still_ours(identity)
        yield

    @contextlib.contextmanager
    def drawing(self, identity: dict[str, Any], shard: str, file: str) -> Iterator[None]:
        """As `Store`; another program may draw the same shard, and writes the same bytes."""
        self._check_still_ours(identity)
        yield

    def listing(self, prefix: str) -> dict[str, int]:
        """As `Store`."""
        sizes, counts = dict[str, int](), Counter[str]()
        for path, size in self._find(prefix).items():
            name, slash, _ = self._name(path).partition("/")
            if slash:
                counts[name] += 1
            else:
                sizes[name] = size
        return counts | sizes

    def read(self, names: Sequence[str]) -> dict[str, bytes | InputError]:
        """As `Store`."""
        if not names:
            return {}
        with self._asked(names[0], "read"):
            contents = self._files.cat([self._path(name) for name in names], on_error="return")
        return {name: self._content(name, contents.get(self._path(name))) for name in names}

    def write(self, name: str, content: bytes) -> None:
        """As `Store`."""
        with self._asked(name, "written"):
            self._files.pipe_file(self._path(name), content)

    def remove(self, name: str) -> None:
        """As `Store`."""
        self._remove([path for path in self._find(name) if path == self._path(name)])

    def remove_all(self, prefix: str) -> None:
        """Remove the objects whose names begin so. Raises InputError if one cannot be removed."""
        self._remove(list(self._find(prefix)))

    def write_shard(self, file: str, format_: str, indices: Sequence[int], images: np.ndarray) -> tuple[int, str]:
        """As `Store`."""
        with work_folder() as folder:
            local = folder / file
            facts = write_shard(local, format_, indices, images)
            if local.is_dir():
                pictures = {self._path(f"{file}/{each.name}"): str(each) for each in local.iterdir()}
                self._remove([path for path in self._find(f"{file}/") if path not in pictures])
                with self._asked(file, "written"):
                    if pictures:
                        self._files.put(list(pictures.values()), list(pictures))
            else:
                with self._asked(file, "written"):
                    self._files.put_file(str(local), self._path(file))
        return facts

    @contextlib.contextmanager
    def reading(self, file: str) -> Iterator[Path]:
        """As `Store`; it is copied into a temporary folder."""
        with work_folder() as folder:
            local = folder / file
            if local.suffix:
                with self._asked(file, "read"):
                    self._files.get_file(self._path(file), str(local))
            else:  # a folder of pictures
                pictures = list(self._find(f"{file}/"))
                local.mkdir()
                with self._asked(file, "read"):
                    if pictures:
                        self._files.get(pictures, [str(local / path.rpartition("/")[2]) for path in pictures])
            yield local

    def put_file(self, name: str, local: Path, replace: bool) -> None:
        """Write an object, whole. Raises InputError if it cannot be written, or is there and not to be replaced."""
        with self._asked(name, "written"):
            try:
                self._files.put_file(str(local), self._path(name), mode="overwrite" if replace else "create")
            except FileExistsError:
                raise InputError(f"{self.place(name)}: is in the way; give another --out") from None

    def has(self, name: str) -> bool:
        """Whether there is such an object. Raises InputError if the store cannot be asked."""
        return self._path(name) in self._find(name)

    def growing(self, name: str) -> GrowingFile:
        """As `Store`."""
        return ObjectsThatGrow(self, name)

    def _check_still_ours(self, identity: dict[str, Any]) -> None:
        found = self.manifest()
        if found is None or found.identity != identity:
            what = "has removed its run.json" if found is None else "is drawing another run into it"
            raise InputError(f"{self._url}: another program {what}; wait for it, or choose another place with --out")

    def _of_run(self, patterns: Sequence[str]) -> list[str]:
        """The paths whose first name is one of these; of a folder of pictures, its pictures."""
        of_run = []
        for path in sorted(self._find("")):
            name, slash, picture = self._name(path).partition("/")
            if (not slash or fnmatch.fnmatchcase(picture, "[0-9]*.png")) and any(
                fnmatch.fnmatchcase(name, pattern) for pattern in patterns
            ):
                of_run.append(path)
        return of_run

    def _find(self, prefix: str) -> dict[str, int]:
        """The paths that begin so, with their sizes."""
        with self._asked(prefix, "read"):
            try:
                found = self._files.find(self._root, detail=True, prefix=prefix)
            except FileNotFoundError:
                return {}
        begin = self._path(prefix)
        return {
            path: facts["size"]
            for path, facts in found.items()
            if path.startswith(begin) and facts["type"] == "file" and not path.endswith("/")
        }

    def _remove(self, paths: Sequence[str]) -> None:
        if paths:
            with self._asked(self._name(paths[0]), "removed"), contextlib.suppress(FileNotFoundError):
                self._files.rm(list(paths))

    def _content(self, name: str, found: bytes | Exception | None) -> bytes | InputError:
        if isinstance(found, bytes):
            return found
        why = "no such object" if found is None or isinstance(found, FileNotFoundError) else _in_words(found)
        return InputError(f"{self.place(name)}: cannot be read ({why}); {RECORD_REMEDY}")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _name(self, path: str) -> str:
        return path.removeprefix(f"{self._root}/")

    @contextlib.contextmanager
    def _asked(self, name: str, doing: str) -> Iterator[None]:
        """What the library behind a store raises is of its own, and says something of the store."""
        try:
            yield
        except (InputError, MemoryError):
            raise
        except Exception as error:
            raise InputError(
                f"{self.place(name)}: cannot be {doing} ({_in_words(error)}); check the address and the credentials, "
                "or try again"
            ) from error


class ObjectsThatGrow:
    """A `GrowingFile` of one object for each piece, which is named by the place where it begins."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store, self._name = store, name
        self.place = store.place(name)

    def read(self) -> bytes:
        """As `GrowingFile`."""
        content = b""
        pieces = sorted(self._store.listing(self._name))
        contents = self._store.read(pieces)
        while isinstance(piece := contents.get(self._piece(len(content))), bytes) and piece:
            content += piece
        return content

    def write(self, content: bytes, at: int) -> None:
        """As `GrowingFile`."""
        self._store.write(self._piece(at), content)

    def remove(self) -> None:
        """As `GrowingFile`."""
        self._store.remove_all(self._name)

    def _piece(self, at: int) -> str:
        return f"{self._name}-{at:015d}"


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {reason(error)}"
