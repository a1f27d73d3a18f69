"""`make mutants`: the mathematics, the chain, the formats and the gates are changed, one place at a time: who notices?

    python -m tests.mutants                        a random sample, for MUTANT_MINUTES (30)
    python -m tests.mutants diffusion/spacing.py   every mutant of these files

A mutant is imported in the place of its module (no file of the project is changed) by a fork of a process that has
imported the libraries already. It is killed by a test that fails, or that does not end.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measurement import measurement_facts, write_report
from ddpm_rt.own_packages import PACKAGES
from tests.mutants.mutations import Mutant, mutants_of
from tests.mutants.tests_of import FILES, ROOT, tests_of

_TIMEOUT_S = 600
REASONS = Path(__file__).with_name("survivors.json")
"""Mutants that no test can or need notice: name → why."""


class _Planter(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        self._name = mutant.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """As the protocol says."""
        if name != self._name:
            return None
        file = ROOT / self._mutant.file
        folders = [str(file.parent)] if file.name == "__init__.py" else None
        loader = _Loader(self._mutant, name, str(file))
        return importlib.util.spec_from_file_location(name, file, loader=loader, submodule_search_locations=folders)


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, mutant: Mutant, name: str, path: str) -> None:
        super().__init__(name, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> object:
        """Of the changed source; what was compiled before is not looked at."""
        return compile(self._mutant.source, self.path, "exec", dont_inherit=True)


def is_killed(mutant: Mutant) -> bool:
    """Whether a test of the mutant's module fails, or does not end."""
    child = os.fork()
    if child == 0:
        status = 0
        try:
            os.setpgrp()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            import pytest

            for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
                del sys.modules[name]  # which this program itself has imported, unchanged
            sys.meta_path.insert(0, _Planter(mutant))
            words = ["-q", "-x", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly"]
            status = int(pytest.main([*words, *tests_of(mutant.file)]) != 0)
        except BaseException:
            status = 1
        finally:
            os._exit(status)
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status != 0
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main() -> int:
    """The command line; returns 1 where fewer than nine in ten mutants are killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="all mutants of these (default: a sample of all files)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num", type=int, help="at most so many")
    parser.add_argument("--out", type=Path, help="a JSON file of what was found")
    args = parser.parse_args()
    for library in ("numpy", "PIL.Image", "scipy.special", "onnx", "onnxruntime", "openvino"):
        importlib.import_module(library)
    mutants = [each for file in args.files or FILES for each in mutants_of(file, (ROOT / file).read_text())]
    total = len(mutants)
    if not args.files:
        random.Random(args.seed).shuffle(mutants)
    reasons = json.loads(REASONS.read_text())
    seconds = 60 * float(os.environ.get("MUTANT_MINUTES", "30"))
    began, survivors, tried, excused, sound = time.monotonic(), [], 0, [], set()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for mutant in mutants[: args.num]:
            if not args.files and time.monotonic() - began > seconds:
                break
            if mutant.name in reasons:
                excused.append(mutant.name)
                continue
            tests = tuple(tests_of(mutant.file))
            if tests not in sound:  # what fails without a change kills every mutant
                unchanged = Mutant(mutant.file, 0, "nothing", (ROOT / mutant.file).read_text())
                assert not is_killed(unchanged), f"the tests of {mutant.file} fail without a change: {tests}"
                sound.add(tests)
            tried += 1
            if not is_killed(mutant):
                survivors.append(mutant.name)
                print(f"survives: {mutant.name}", flush=True)
    killed = tried - len(survivors)
    share = killed / max(1, tried)
    print(f"{killed} of {tried} mutants are killed ({share:.1%}) of {total}; {len(excused)} more need not be")
    if args.out is not None:
        found = {"mutants": total, "tried": tried, "killed": killed, "survivors": survivors, "excused": excused}
        write_report({**measurement_facts("tests.mutants", None), "seed": args.seed, **found}, args.out)
    return 0 if share >= 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
