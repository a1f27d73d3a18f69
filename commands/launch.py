"""Start a command whose module needs libraries before it can parse anything: a missing one is one line, exit code 4."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from commands.errors import EXIT_DEVICE
from commands.missing_module import missing_module
from commands.program import say


def launch(command: str, module: str, argv: Sequence[str] | None = None) -> int:
    """Import `module` and run its `main(argv)`; return the exit code.

    Args:
        command: as users start it, such as `benchmarks.kernels`.
        module: where its `main` is.
        argv: the command line; None for that of this process.
    """
    try:
        main = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        missing = missing_module(error, command)
        if missing is None or "--debug" in (sys.argv if argv is None else argv):
            raise
        say(f"{command}: {missing}")
        return EXIT_DEVICE
    code: int = main(argv)
    return code
