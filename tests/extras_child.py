"""Runs commands in a process where only some extras are installed: everything else cannot be imported.

    python extras_child.py ABSENT.json COMMANDS.json RESULT.json

ABSENT is a list of top-level modules, COMMANDS a list of [module, argument, …]. RESULT becomes a list of
[exit code, last line on standard error].
"""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from types import ModuleType


class OnlyInstalled:
    """Python's finder of modules on a path, but for those that are not there."""

    def __init__(self, absent: set[str]) -> None:
        self.absent = absent

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> object:
        return None if name.partition(".")[0] in self.absent else PathFinder.find_spec(name, path, target)

    def find_distributions(self, context: DistributionFinder.Context) -> Iterable[Distribution]:
        return PathFinder.find_distributions(context)


def run(words: list[str]) -> list:
    """[exit code, last line]: 'raised …' instead of the line if an exception came through."""
    sys.argv = words
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException as error:
            return [1, f"raised {error!r}"]
    return [code, (err.getvalue().strip().splitlines() or [""])[-1]]


if __name__ == "__main__":
    absent, commands = (json.loads(Path(path).read_text()) for path in sys.argv[1:3])
    result = Path(sys.argv[3])
    sys.meta_path[:] = [OnlyInstalled(set(absent)) if finder is PathFinder else finder for finder in sys.meta_path]
    sys.path.remove(str(Path(__file__).parent))  # which holds packages of our packages' names
    result.write_text(json.dumps([run(words) for words in commands]))
