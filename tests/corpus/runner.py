"""Tries bad inputs: each in a fork of one process that has imported everything, or with --fresh in a new process.

The process that forks runs nothing itself: a library's threads do not live on in a fork. `make torture` runs all of it
and writes benchmarks/results/bad_inputs.json.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from commands.errors import EXIT_VERIFICATION
from tests.corpus.case import Case, nothing
from tests.corpus.process import HANG_SECONDS, import_everything, make_in_fork, run_forked, run_fresh

TABLES = ("places", "json_files", "numbers", "archives", "networks", "pictures")
MAX_SECONDS, MAX_BYTES = 2.0, 300 * 2**20
_TRACEBACK = "Traceback (most recent call last)"
# A file's name ends in a suffix of its own.
_ERROR = r"(python -m )?(train|export|runtime|benchmarks)\.[a-z_]+: "
_LONGEST_LINE = 1200
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Result:
    """What became of a case.

    Attributes:
        name: of the case.
        faults: what was not as it must be; empty if the case was refused well.
        code: exit code, or minus a signal.
        text: its standard error.
        seconds, cpu_seconds: wall time and computing.
        memory: bytes at the peak; of a fork, beyond what the process had before.
    """

    name: str
    faults: tuple[str, ...]
    code: int
    text: str
    seconds: float
    cpu_seconds: float
    memory: int


def all_cases() -> list[Case]:
    """Every case of every table."""
    tables = [importlib.import_module(f"tests.corpus.{name}") for name in TABLES]
    found = [case for table in tables for case in table.cases()]
    names = [case.name for case in found]
    assert len(set(names)) == len(names), sorted({name for name in names if names.count(name) > 1})
    return found


def try_case(case: Case, template: Path, scratch: Path, fresh: bool) -> Result:
    """Run one case in a copy of the template."""
    folder, err = scratch / "case", scratch / "err"
    shutil.copytree(template, folder, symlinks=True)
    err.write_bytes(b"")
    try:
        if case.make is not nothing:
            make_in_fork(case.make, folder)
        before = _listing(folder)
        began = time.perf_counter()
        ended = (run_fresh if fresh else run_forked)(case.command, case.argv, folder, err)
        seconds = time.perf_counter() - began
        text = err.read_text(encoding="utf-8", errors="replace")
        faults = list(_faults(case, ended.code, text))
        if ended.hung:
            faults.insert(0, f"goes on after {HANG_SECONDS:g} s")
        if ended.peak > MAX_BYTES and not fresh:
            faults.append(f"takes {ended.peak / 2**20:.0f} MiB")
        after = _listing(folder)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        if changed:
            faults.append(f"changes {', '.join(changed)}")
        return Result(case.name, tuple(faults), ended.code, text[-3000:], seconds, ended.cpu_seconds, ended.peak)
    finally:
        _remove_tree(folder)


def _faults(case: Case, code: int, text: str) -> Iterator[str]:
    if code not in case.codes:
        yield f"ends with {code}, expected {' or '.join(map(str, case.codes))}"
    if _TRACEBACK in text:
        yield "prints a traceback"
    lines = text.splitlines()
    errors = [line for line in lines if re.match(_ERROR, line)]
    if len(errors) != 1:
        yield f"prints {len(errors)} lines of error"
    if not lines:
        return
    # Of a network that was compared, a table says behind the error how far apart the two are.
    last = errors[0] if code == EXIT_VERIFICATION and errors else lines[-1]
    if [last] != errors[-1:]:
        yield "prints no line of its own last"
    if len(last) > _LONGEST_LINE:
        yield f"prints a line of {len(last)} characters"
    # Of a flag alone, what is expected of it is the way out.
    if "; " not in last and (case.make is not nothing or "expected" not in last):
        yield "names no way out"
    # A note before the error may have said which file it was.
    lacking = case.lacking(" ".join([*(line for line in lines if line.startswith("note: ")), last]))
    if lacking:
        yield f"does not say {lacking}"


def _listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    found, left = {}, [folder]
    while left:  # os.walk does not reach the end of a thousand folders
        with contextlib.suppress(OSError), os.scandir(left.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                of_folder = entry.is_dir(follow_symlinks=False)
                facts = (0, 0, 0) if of_folder else (status.st_ino, status.st_mtime_ns, status.st_size)
                found[os.path.relpath(entry.path, folder)] = facts
                left += [Path(entry.path)] if of_folder else []
    return found


def _remove_tree(folder: Path) -> None:
    # Python's own recursion does not reach the end of a thousand folders.
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def run_cases(cases: Sequence[Case], fresh: bool = False, verbose: bool = False) -> list[Result]:
    """Try them one after the other."""
    with tempfile.TemporaryDirectory(prefix="ddpm-rt-corpus-") as place:
        scratch = Path(place)
        os.environ |= {
            "XDG_CACHE_HOME": str(scratch / "cache"),
            "HOME": str(scratch),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        template = _make_template(scratch / "template")
        import_everything()
        results = []
        for number, case in enumerate(cases):
            results.append(try_case(case, template, scratch, fresh))
            last = results[-1]
            if verbose and last.faults:
                print(
                    f"{last.name}: {', '.join(last.faults)}\n    {list(case.argv)}\n    {last.text[-1500:]}", flush=True
                )
            elif verbose and number % 100 == 0:
                print(f"{number} of {len(cases)}", flush=True)
        return results


def _make_template(folder: Path) -> Path:
    """The folder that cases are tried in copies of, made by a process that ends."""
    kept = os.environ.get("DDPM_RT_CORPUS")  # of an earlier run, for who works on the tables
    if kept and Path(kept).is_dir():
        shutil.copytree(kept, folder, symlinks=True)
        return folder
    folder.mkdir()
    made = subprocess.run(
        [sys.executable, "-m", "tests.corpus.folder", str(folder)],
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    if kept:
        shutil.copytree(folder, kept, symlinks=True)
    return folder


def report(results: Sequence[Result], fresh: bool) -> dict[str, Any]:
    """The figures of a run."""
    seconds, cpu = sorted(each.seconds for each in results), sorted(each.cpu_seconds for each in results)
    memory = sorted(each.memory / 2**20 for each in results)
    return {
        "each_in": "a new process" if fresh else "a fork of a process that has imported everything",
        "bad_inputs": len(results),
        "refused_as_they_must_be": sum(not each.faults for each in results),
        "exit_codes": {
            str(code): sum(each.code == code for each in results) for code in sorted({e.code for e in results})
        },
        "seconds": {"median": seconds[len(seconds) // 2], "largest": seconds[-1]},
        "cpu_seconds": {"median": cpu[len(cpu) // 2], "largest": cpu[-1]},
        "over_2_cpu_seconds": [each.name for each in results if each.cpu_seconds > MAX_SECONDS],
        "peak_mib": {"median": memory[len(memory) // 2], "largest": memory[-1]},
        "not_refused": {each.name: list(each.faults) for each in results if each.faults},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="a new process for each case")
    parser.add_argument("--only", default="", help="a pattern that names must hold")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of those, every N-th")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write what became of each")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args(argv)
    cases = [case for case in all_cases() if re.search(args.only, case.name)][:: args.every]
    results = run_cases(cases, args.fresh, verbose=True)
    if args.results:
        args.results.write_text(json.dumps({"results": [asdict(result) for result in results]}))
    if args.out:
        from benchmarks.measurement import measurement_facts

        facts = measurement_facts("tests.corpus.runner", argv)
        args.out.write_text(json.dumps(facts | report(results, args.fresh), indent=1) + "\n")
    bad = sum(bool(result.faults) for result in results)
    print(f"{len(results)} bad inputs, {bad} not refused as they must be")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
