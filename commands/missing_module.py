"""Libraries that are needed at the end of long work are asked for before it begins."""

from __future__ import annotations

import importlib.util


def require_module(module: str) -> None:
    """Ask for a module that will be needed.

    Raises:
        ModuleNotFoundError: it is not installed; `commands.program.run_program` says so in one line.
    """
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
