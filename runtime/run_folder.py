"""The folder of a run: whose samples it holds, how far they are, and whether this run may write there."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from commands.output_lock import sole_writer
from commands.whole_files import write_whole_text
from diffusion.errors import InputError
from diffusion.json_text import read_json
from diffusion.number_checks import is_whole, shown
from runtime.host_chain import NonFiniteSample

MANIFEST = "run.json"
MANIFEST_FORMAT = 1


@dataclass
class RunFolder:
    """`run.json` in an output folder.

    Attributes:
        path: the folder.
        identity: everything that decides the samples and their files; equal identities mean equal samples.
        done: how many of the run's samples are finished and on disk, counted from the first.
        non_finite: those among them that broke and were not written.
        files: names of the files that hold results, relative to the folder; a trailing * stands for any.
    """

    path: Path
    identity: dict[str, Any]
    done: int = 0
    non_finite: list[NonFiniteSample] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    @classmethod
    def claim(
        cls,
        path: Path,
        identity: dict[str, Any],
        files: list[str],
        resume: bool = False,
        overwrite: bool = False,
    ) -> RunFolder:
        """Make the folder this run's own, or refuse; nothing in it is touched before it is known to be ours.

        Args:
            path: the folder; made if missing.
            identity: of this run, JSON values only.
            files: what this run will write.
            resume: go on after the samples that are finished already; begin where there are none, as in a folder
                that is empty, absent, or of a run that was killed before it wrote anything.
            overwrite: remove another run's samples first.

        Raises:
            InputError: it holds another run's samples, foreign files of the same names or a manifest that is not
                one, or it cannot be written.
        """
        found = _read_manifest(path)
        mine = found is not None and found["identity"] == identity
        if resume and found is not None:
            if not mine:
                raise InputError(
                    f"{path}: {_difference(found['identity'], identity)}; "
                    "--resume goes on with the same run only: give the same flags, or another --out"
                )
            folder = cls(path, identity, found["done"], found["non_finite"], files)
            folder.save()
            return folder
        if found is not None and not mine and not overwrite:
            raise InputError(
                f"{path}: holds another run's samples ({_difference(found['identity'], identity)}); "
                "give another --out, or --overwrite to replace them"
            )
        if found is None and not overwrite:
            for pattern in files:
                for foreign in path.glob(pattern):
                    raise InputError(f"{foreign}: is in the way; give another --out, or --overwrite to replace it")
        if found is not None and not mine:
            for pattern in found["files"]:
                for old in path.glob(pattern):
                    old.unlink()
        folder = cls(path, identity, files=files)
        folder.save()
        return folder

    def record(self, num: int, non_finite: list[NonFiniteSample]) -> None:
        """Note that `num` more samples are done, these among them not finite. Raises InputError as `save`."""
        before = self.done, self.non_finite
        self.done, self.non_finite = self.done + num, [*self.non_finite, *non_finite]
        try:
            self.save()
        except InputError:
            self.done, self.non_finite = before
            raise

    def save(self) -> None:
        """Write the manifest, whole. Raises InputError if the folder cannot be written."""
        content = {
            "format": MANIFEST_FORMAT,
            "done": self.done,
            "non_finite": [vars(sample) for sample in self.non_finite],
            "files": self.files,
            "identity": self.identity,
        }
        write_whole_text(self.path / MANIFEST, json.dumps(content, indent=1) + "\n")


@contextlib.contextmanager
def sole_run(path: Path) -> Iterator[None]:
    """Be the only run that writes into a folder, which is made if missing.

    Raises:
        InputError: another program is writing there, it is a file, or it cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file, expected a folder; give another --out")
    with sole_writer(path / MANIFEST):
        yield


def _read_manifest(path: Path) -> dict[str, Any] | None:
    manifest = path / MANIFEST
    if not os.path.lexists(manifest):
        return None
    content = read_json(manifest, "give another --out, or remove it")
    if not isinstance(content, dict) or content.get("format") != MANIFEST_FORMAT or not _is_manifest(content):
        raise InputError(f"{manifest}: is not a run of this version's format {MANIFEST_FORMAT}; give another --out")
    content["non_finite"] = [NonFiniteSample(**sample) for sample in content["non_finite"]]
    return content


def _is_manifest(content: dict[str, Any]) -> bool:
    done, broken, files, identity = (content.get(name) for name in ("done", "non_finite", "files", "identity"))
    names = {field.name for field in fields(NonFiniteSample)}
    return (
        is_whole(content.get("format"))
        and isinstance(identity, dict)
        and is_whole(done)
        and 0 <= done <= identity.get("num", done)
        and isinstance(broken, list)
        and all(
            isinstance(each, dict) and each.keys() == names and all(map(is_whole, each.values())) for each in broken
        )
        and isinstance(files, list)
        # Patterns of what may be removed: in this folder alone.
        and all(isinstance(name, str) and Path(name).name == name and "**" not in name for name in files)
    )


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """The first field in which two runs differ, in words."""
    for name in sorted(set(found) | set(expected)):
        if found.get(name) != expected.get(name):
            return f"its {name} is {shown(found.get(name))}, this run's is {shown(expected.get(name))}"
    return "it is the same run"
