"""A command in a process of its own, with arguments that no command line can hold: JSON on standard input."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

# Where the entry of a command is, for those that are not `main` of their module.
_ENTRIES = {"train.run": ("train.run", "run")}


def entry_of(command: str) -> Any:
    """The function that takes the arguments and returns the exit code."""
    module, name = _ENTRIES.get(command, (command, "main"))
    found = importlib.import_module(module)
    if not hasattr(found, name):  # a package, whose command is in `__main__`
        found = importlib.import_module(f"{module}.__main__")
    return getattr(found, name)


if __name__ == "__main__":
    sys.exit(entry_of(sys.argv[1])(json.loads(sys.stdin.buffer.read())))
