"""Stops a command at each of its writing system calls, looks at what is left, and runs the command again.

`python -m tests.faults.sweep npz train/10` prints a JSON object for each case, of the second for a tenth of the places.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Before anything is imported that starts threads: children are forked from this process.
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")

from benchmarks.measurement import measurement_facts, write_report
from tests.faults.case import Case, contents
from tests.faults.cases import CASES
from tests.faults.supervisor import Fault, Outcome, takes_room, watched

KINDS = {"kill": (None, False), "EIO": (errno.EIO, False), "ENOSPC": (errno.ENOSPC, True)}
_NOWHERE = Path("/nowhere")


class Sweep:
    """A case and its faults.

    Args:
        case: which.
        base: an empty folder.
    """

    def __init__(self, case: Case, base: Path) -> None:
        self._case, self._base, self._folder, self._said = case, base, base / "work", base / "said"
        for name in ("inputs", "work"):
            (base / name).mkdir(parents=True)
        with contextlib.chdir(base):
            case.prepare(base / "inputs")
        if case.old:
            self._succeed("old", case.old)
        self._old = contents(self._folder)
        shutil.copytree(self._folder, base / "old")
        self.calls = self._succeed("new", case.new).calls
        self._new = contents(self._folder)

    def _succeed(self, variant: str, arguments: Sequence[str]) -> Outcome:
        if self._case.in_parent:
            with contextlib.redirect_stderr(sys.stderr), contextlib.redirect_stdout(sys.stderr):
                backup = self._base / "backup"
                shutil.copytree(self._folder, backup)
                assert self._command(variant, arguments) == 0
                shutil.rmtree(self._folder)
                backup.rename(self._folder)
        ended = watched(lambda: self._command(variant, arguments), self._folder, self._said)
        assert ended.code == 0, ended.said
        return ended

    def _command(self, variant: str, arguments: Sequence[str]) -> int:
        with contextlib.chdir(self._folder), self._case.within(variant):
            return self._case.main(list(arguments))

    def places(self, kind: str) -> list[int]:
        """At which calls there can be such a fault."""
        return [at for at, (name, _) in enumerate(self.calls) if kind != "ENOSPC" or takes_room(name)]

    def fault(self, kind: str, at: int) -> str | None:
        """Stop the command there; what is wrong then, or None."""
        code, lasting = KINDS[kind]
        shutil.rmtree(self._folder)
        shutil.copytree(self._base / "old", self._folder)
        ended = watched(
            lambda: self._command("new", self._case.new), self._folder, self._said, Fault(at, code, lasting)
        )
        try:
            expected = (-signal.SIGKILL,) if code is None else (0, 2)
            assert ended.code in expected, f"exit code {ended.code}"
            assert "Traceback" not in ended.said
            assert "a bug" not in ended.said
            self._case.check(self._folder, self._old, self._new)
            again = self._case.again[at % len(self._case.again)]
            ended = watched(lambda: self._command("new", again), _NOWHERE, self._said)
            if ended.code == 2 and ("its seed is 0" in ended.said or "seed 0, asked for is 1" in ended.said):
                # It is the old run still, with which --resume does not go on.
                again = self._case.again[0]
                ended = watched(lambda: self._command("new", again), _NOWHERE, self._said)
            assert ended.code == 0, f"exit code {ended.code} of {' '.join(again[-1:])} afterwards"
            self._case.ends(self._folder, self._new)
        except Exception as error:  # of the check, which could not read what is there
            line = traceback.extract_tb(error.__traceback__)[-1].line
            name, path = self.calls[at]
            return (
                f"{kind} at {at} ({name} {path}): {error or line} ({type(error).__name__}) {ended.said[-300:]}".strip()
            )
        return None


def sweep(name: str, every: int) -> dict[str, Any]:
    """Of one of `CASES`, with faults at one of so many places: their numbers, and what was wrong."""
    begun = sum(os.times()[:4])
    with tempfile.TemporaryDirectory() as base:
        found = Sweep(CASES[name](), Path(base))
        report: dict[str, Any] = {"case": name, "calls": len(found.calls), "wrong": []}
        for number, kind in enumerate(KINDS):
            places = found.places(kind)[(every - 1 - number) % every :: every]
            report[kind] = len(places)
            report["wrong"] += [wrong for at in places if (wrong := found.fault(kind, at))]
    report["cpu_seconds"] = round(sum(os.times()[:4]) - begun, 1)
    return report


@contextlib.contextmanager
def _own_cache() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        yield


def main() -> int:
    """The command line; 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE[/N]", help=", ".join(CASES))
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all of them, with the machine")
    args = parser.parse_args()
    reports = []
    with _own_cache():
        for name, _, every in (text.partition("/") for text in args.cases):
            reports.append(sweep(name, int(every or 1)))
            print(json.dumps(reports[-1]), flush=True)
            kinds = {kind: sum(report[kind] for report in reports) for kind in KINDS}
            facts = {"format": 1, **measurement_facts("tests.faults.sweep", None), "faults": kinds, "cases": reports}
            write_report(facts, args.out)
    return int(any(report["wrong"] for report in reports))


if __name__ == "__main__":
    sys.exit(main())
