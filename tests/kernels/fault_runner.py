"""Plants faults, one at a time, and says which test caught each.

python -m tests.kernels.fault_runner            # all of them: about ten seconds each
python -m tests.kernels.fault_runner 3 17       # these
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.kernels.planted_faults import FAULTS, TESTS, Fault
from tests.kernels.software_build import KERNELS, ROOT, Build

TIMEOUT_S = 300


class Planter(importlib.abc.MetaPathFinder):
    """Imports one module of ours with a fault in it."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._name = fault.file.removesuffix(".py").replace("/", ".")

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """As the protocol says."""
        if name != self._name:
            return None
        source = ROOT / self._fault.file
        return importlib.util.spec_from_file_location(
            name, source, loader=_FaultyLoader(self._fault, name, str(source))
        )


class _FaultyLoader(importlib.machinery.SourceFileLoader):
    def __init__(self, fault: Fault, name: str, path: str) -> None:
        super().__init__(name, path)
        self._fault = fault

    def get_code(self, fullname: str) -> object:
        return compile(planted(self._fault), self.path, "exec")


def planted(fault: Fault) -> str:
    """The file with the fault in it."""
    source = (ROOT / fault.file).read_text(encoding="utf-8")
    assert source.count(fault.right) == 1, f"{fault.file} has {source.count(fault.right)} of {fault.right!r}"
    return source.replace(fault.right, fault.wrong)


def caught_by(number: int, folder: Path) -> str:
    """Plant a fault and run the tests.

    Args:
        number: of the fault.
        folder: an empty one for what is built.

    Returns:
        The first test that failed, or "timeout"; empty if nothing noticed.
    """
    fault = FAULTS[number]
    environment = dict(os.environ)
    if not fault.file.endswith(".py"):
        kernels = folder / "kernels"
        shutil.copytree(KERNELS, kernels)
        (kernels / Path(fault.file).name).write_text(planted(fault), encoding="utf-8")
        environment["DDPM_RT_SOFTWARE_KERNELS"] = str(Build(kernels=kernels, cache=folder / "built").module())
    command = [sys.executable, "-m", "tests.kernels.fault_runner", "--run", str(number)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return "timeout"
    if done.returncode == 0:
        return ""
    failures = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failures[0].split("::")[-1] if failures else f"exit code {done.returncode}: {done.stderr[-200:]}"


def _run_tests(fault: Fault) -> int:
    """In a process of its own: the tests that know nothing of the fault."""
    if fault.file.endswith(".py"):
        sys.meta_path.insert(0, Planter(fault))
    files = sorted(TESTS, key=lambda name: name != fault.first)
    return int(pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-m", "not gpu", *files]))


def main(arguments: list[str]) -> int:
    """Try faults and print what caught each; 1 if one was not caught."""
    if arguments[:1] == ["--run"]:
        return _run_tests(FAULTS[int(arguments[1])])
    missed = 0
    for number in map(int, arguments) if arguments else range(len(FAULTS)):
        with tempfile.TemporaryDirectory() as folder:
            caught = caught_by(number, Path(folder))
        missed += not caught
        print(f"{number:3} {FAULTS[number].kind:52} {caught or 'NOT CAUGHT'}", flush=True)
    print(f"{missed} not caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
