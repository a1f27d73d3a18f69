"""The folder of a run: its configuration, its progress, and the state to resume from."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.locks import sole_writer
from commands.program import say
from commands.whole_files import remove_abandoned, whole_file, write_whole_text
from diffusion.errors import InputError
from diffusion.json_text import parse_json
from runtime.formats.digest import DIGEST, check, seal, sealed_text
from runtime.formats.fields import read_fields
from runtime.formats.train_record import (
    METRICS,
    TRAIN_FORMAT,
    TRAIN_JSON,
    UNDIGESTED_TRAIN_FORMAT,
    checkpoint_files,
)
from train.saved_state import read_state, write_state

STATE_FORMAT = 1
_RUN_FORMAT, _UNDIGESTED_RUN_FORMAT = 2, 1
_STATE_FOLDER = "state"
_RUN_JSON = "run.json"
_STATE, _PREVIOUS_STATE = "state.pt", "state.previous.pt"
_ANEW = "start over with --overwrite"
# A continued run may ask for more of these, if neither its learning rate nor its schedule depends on them.
_STEPS = "steps"


@dataclass(frozen=True)
class RunStatus:
    """What an output folder holds for the run that is asked for.

    Attributes:
        state: saved state to resume from; None to begin at step 0.
        complete: the run is finished and published already.
    """

    state: dict[str, Any] | None = None
    complete: bool = False


class RunFolder:
    """An output folder: published files at the top, the state of the run under `state/`.

    Args:
        path: of the folder; need not exist.
        record: the run's configuration as JSON values; equal records give equal weights.
        defaults: values of names that a record lacks because it was written before they existed.
    """

    def __init__(self, path: Path, record: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.record: dict[str, Any] = json.loads(json.dumps(record))
        self._defaults: dict[str, Any] = json.loads(json.dumps(defaults or {}))
        self._state_folder = path / _STATE_FOLDER

    @property
    def running_metrics(self) -> Path:
        """The metrics of the run under way; copied to the top when it is finished."""
        return self._state_folder / METRICS

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Be the only one who writes the folder, which is made if missing.

        Raises:
            InputError: another program is writing it, it is a file, or it cannot be written.
        """
        self._check_is_folder()
        with sole_writer(self.path / TRAIN_JSON):
            checkpoint_files(self.path).settle()
            remove_abandoned(self._state_folder)
            yield

    def inspect(self, resume: bool, overwrite: bool) -> RunStatus:
        """Where the run stands. Changes nothing.

        Raises:
            InputError: the folder holds something else, an unfinished run without `resume`, a run of another
                configuration, or a state that cannot be read.
        """
        self._check_is_folder()
        path = self.path
        held = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(".")) if path.exists() else []
        if not held or overwrite:
            return RunStatus()
        published = self._read_train_json()
        running = _read_json(self._state_folder / _RUN_JSON, _RUN_FORMAT, _UNDIGESTED_RUN_FORMAT)
        if published is None and running is None:
            raise InputError(
                f"{path}: holds {held[0]!r} and no {TRAIN_JSON} of ours, expected an empty folder or an earlier run; "
                "choose another with --out, or write into it with --overwrite"
            )
        has_state = running is not None and any(path.is_file() for path in self._states)
        unfinished = has_state and running is not None and not running.get("published")
        if not resume:
            if unfinished and running is not None:
                raise InputError(
                    f"{path}: holds a run that stopped at step {running.get('step')}; go on with --resume, "
                    "or start over with --overwrite"
                )
            if published is not None:
                self._check_record(published, "choose another folder with --out, or replace it with --overwrite")
            return RunStatus()
        if has_state:
            state = self._load_state()
            self._check_record(state, "resume with the same flags, or start over with --overwrite", state["step"])
            finished = not unfinished and published is not None and state["step"] == self.record[_STEPS]
            return RunStatus(state, complete=finished)
        if published is not None:
            self._check_record(published, "choose another folder with --out, or replace it with --overwrite")
            return RunStatus(complete=True)
        return RunStatus()

    def begin(self, status: RunStatus) -> None:
        """Prepare the folder for the run: forget an older state, or what was logged after the saved one.

        Raises:
            InputError: the folder cannot be written.
        """
        kept: list[str] = []
        if status.state is not None and self.running_metrics.is_file():
            lines = self.running_metrics.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) <= status.state["step"]]
        if status.state is None:
            for path in self._states:  # first: a state of another run is never beside what says that it is this one
                path.unlink(missing_ok=True)
        self._write_run_json(0 if status.state is None else status.state["step"], published=False)
        write_whole_text(self.running_metrics, "".join(line + "\n" for line in kept))

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to the metrics. Raises InputError where the disk does not take it."""
        try:
            with self.running_metrics.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(seal(line)) + "\n")
        except OSError as error:
            raise InputError(f"{self.running_metrics}: cannot be written ({error.strerror or error})") from error

    def save(self, state: Mapping[str, Any]) -> None:
        """Save the state of the run, whole or not at all, and keep the one before.

        Raises:
            InputError: the disk does not take it.
        """
        latest, previous = self._states
        with whole_file(latest) as temporary:
            write_state(temporary, {"format": STATE_FORMAT, "config": self.record, **state})
            with contextlib.suppress(FileNotFoundError):  # of the first one
                latest.replace(previous)
        self._write_run_json(state["step"], published=False)

    def published(self) -> dict[str, Any]:
        """The `train.json` of the finished run.

        Raises:
            InputError: there is none.
        """
        described = self._read_train_json()
        if described is None:
            raise InputError(f"{self.path / TRAIN_JSON}: missing or unreadable; train again with --overwrite")
        return described

    def mark_published(self) -> None:
        """Note that the run's files at the top are those of its last state."""
        self._write_run_json(self.record[_STEPS], published=True)

    def _check_is_folder(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file, expected a folder; choose another with --out")

    @property
    def _states(self) -> tuple[Path, Path]:
        """The last one and the one before."""
        return self._state_folder / _STATE, self._state_folder / _PREVIOUS_STATE

    def _load_state(self) -> dict[str, Any]:
        latest, previous = self._states
        if not latest.is_file():  # killed as it was replaced
            return read_state(previous, STATE_FORMAT, _ANEW)
        try:
            return read_state(latest, STATE_FORMAT, _ANEW)
        except InputError as error:
            if not previous.is_file():
                raise
            state = read_state(previous, STATE_FORMAT, _ANEW)
            found = str(error).partition(";")[0]
            say(f"note: {found}; going on from the state before, of step {state['step']}")
            return state

    def _write_run_json(self, step: int, published: bool) -> None:
        fields = {"format": _RUN_FORMAT, "config": self.record, "step": step, "published": published}
        write_whole_text(self._state_folder / _RUN_JSON, sealed_text(fields))

    def _read_train_json(self) -> dict[str, Any] | None:
        return _read_json(self.path / TRAIN_JSON, TRAIN_FORMAT, UNDIGESTED_TRAIN_FORMAT)

    def _check_record(self, found: Mapping[str, Any], remedy: str, step: int | None = None) -> None:
        other = found.get("config")
        held = {**self._defaults, **other} if isinstance(other, dict) else {}
        difference = first_difference(held, self.record)
        if difference is None:
            return
        name, there, asked = difference
        longer = name == _STEPS and step is not None and isinstance(asked, int) and asked >= step
        if longer and self.record.get("learning_rate_decay") == "constant" and not self.record.get("learn_schedule"):
            return
        raise InputError(f"{self.path}: holds a run with {name} {there!r}, asked for is {asked!r}; {remedy}")


def first_difference(found: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first name, in order, whose values differ, with both values; names of nested values are dotted."""
    names = list(asked) + [name for name in found if name not in asked]
    # `steps` alone may be allowed to differ, so it is looked at last.
    for name in sorted(names, key=lambda name: name == _STEPS):
        there, here = found.get(name), asked.get(name)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            nested = first_difference(there, here)
            if nested is not None:
                return f"{name}.{nested[0]}", nested[1], nested[2]
        elif there != here:
            return name, there, here
    return None


def _read_json(path: Path, version: int, undigested: int) -> dict[str, Any] | None:
    try:
        return dict(read_fields(path, version, "train again", undigested=undigested).values)
    except InputError:
        return None


def _step_of(line: str) -> float:
    try:
        fields = parse_json(line)
        if DIGEST in fields:  # earlier versions wrote none
            check(fields, METRICS, "")
        return float(fields["step"])
    except (InputError, ValueError, KeyError, TypeError, OverflowError):
        return float("inf")  # cut off when the run was killed, or changed
