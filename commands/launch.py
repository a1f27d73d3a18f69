"""Start a command whose module needs libraries before it can parse anything: a missing one is one line, exit code 4."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from commands.errors import EXIT_DEVICE
from commands.program import say
from ddpm_rt.missing_package import describe_missing_package


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
        missing = describe_missing_package(error, command)
        if missing is None or "--debug" in (sys.argv if argv is None else argv):
            raise
        say(f"{command}: {missing}")
        return EXIT_DEVICE
    code: int = main(argv)
    return code
