"""The folder of a run: whose samples it holds, how far they are, and whether this run may write there."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from commands.locks import sole_writer
from diffusion.errors import InputError
from diffusion.number_checks import shown
from diffusion.step_table import StepTable
from runtime.conditions import GivenConditions
from runtime.engines.interface import Engine
from runtime.formats.run_manifest import MANIFEST, NonFiniteSample, RunManifest


def run_identity(
    engine: Engine,
    table: StepTable,
    *,
    num: int,
    seed: int,
    start: int,
    x_init_sha256: str | None,
    format_: str,
    given: GivenConditions | None = None,
) -> dict[str, Any]:
    """Everything that decides the samples of a run and their files: equal identities mean equal samples."""
    digest = hashlib.sha256(table.timesteps.astype("<i8").tobytes())
    digest.update(table.cast().astype("<f4").tobytes())
    digest.update(repr((float(table.clip), table.histories, table.learned, table.h2_is_x_start)).encode())
    return {
        "engine_sha256": engine.sha256,
        "backend": engine.name,  # another rounds otherwise
        "table_sha256": digest.hexdigest(),
        "sampler": table.sampler,
        "steps": len(table),
        "seed": seed,
        "start": start,
        "num": num,
        "x_init_sha256": x_init_sha256,
        "format": format_,
        **({} if given is None else {f"condition_{name}": values for name, values in given.identity().items()}),
    }


class RunFolder:
    """An output folder that is this run's own.

    Args:
        path: the folder.
        manifest: what its `run.json` shall say.

    Attributes:
        manifest: what its `run.json` says.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, path: Path, manifest: RunManifest) -> None:
        manifest.write(path)
        self.path, self.manifest = path, manifest

    @property
    def done(self) -> int:
        """How many of the run's samples are finished and on disk, counted from the first."""
        return self.manifest.done

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
        found = RunManifest.read(path)
        mine = found is not None and found.identity == identity
        foreign = [each for pattern in files for each in _found(path, pattern)] if found is None else []
        mixed = next((each for each in foreign if each.name not in files), None)
        if mixed is not None and overwrite:  # whose it is nobody knows, so it is neither removed nor left among ours
            raise InputError(
                f"{mixed}: is of no run that {path / MANIFEST} tells of; move it away, or give another --out"
            )
        refuse_claim(str(path), found, identity, list(map(str, foreign)), resume, overwrite)
        if resume and found is not None:
            return cls(path, replace(found, files=tuple(files)))
        if found is not None and not mine:
            replace(found, done=0, non_finite=()).write(path)  # so that it never claims what is gone
            for pattern in found.files:
                for old in _found(path, pattern):
                    _remove(old)
        return cls(path, RunManifest(identity, tuple(files)))

    def record(self, num: int, non_finite: list[NonFiniteSample]) -> None:
        """Note that `num` more samples are done, these among them not finite. Raises InputError as the constructor."""
        before = self.manifest
        after = replace(before, done=before.done + num, non_finite=(*before.non_finite, *non_finite))
        after.write(self.path)  # first: what could not be noted does not count as done
        self.manifest = after


def refuse_claim(
    place: str,
    found: RunManifest | None,
    identity: dict[str, Any],
    foreign: Sequence[str],
    resume: bool,
    overwrite: bool,
) -> None:
    """Refuse a run a place that is not its own.

    Args:
        place: in words.
        found: what its `run.json` says; None where there is none.
        identity: of the run.
        foreign: files that the run would write, where there is no `run.json`.
        resume, overwrite: as of `RunFolder.claim`.

    Raises:
        InputError: another run's samples, or foreign files, are there.
    """
    if found is None:
        if foreign and not overwrite:
            raise InputError(f"{foreign[0]}: is in the way; give another --out, or --overwrite to replace it")
        return
    if found.identity == identity:
        return
    difference = _difference(found.identity, identity)
    if resume:
        raise InputError(
            f"{place}: {difference}; --resume goes on with the same run only: give the same flags, or another --out"
        )
    if not overwrite:
        raise InputError(
            f"{place}: holds another run's samples ({difference}); give another --out, or --overwrite to replace them"
        )


def samples_done(path: Path) -> int:
    """How many samples a folder says that it holds. Raises InputError for a manifest that is not one."""
    found = RunManifest.read(path)
    return 0 if found is None else found.done


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


def _found(path: Path, pattern: str) -> list[Path]:
    """The files of a pattern; of pictures, those whose names are sample indices: `3-best.png` is the user's."""
    return [each for each in path.glob(pattern) if each.suffix != ".png" or "[" not in pattern or each.stem.isdecimal()]


def _remove(result: Path) -> None:
    """A file, or a folder of a shard's pictures, which must hold nothing else."""
    if result.is_symlink() or not result.is_dir():
        result.unlink()
        return
    for each in result.glob("[0-9]*.png"):
        each.unlink()
    result.rmdir()


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """The first field in which two runs differ, in words."""
    for name in sorted(set(found) | set(expected)):
        if found.get(name) != expected.get(name):
            return f"its {name} is {shown(found.get(name))}, this run's is {shown(expected.get(name))}"
    return "it is the same run"
