"""Our packages come from where this one lies, whatever else is called `train`, `export` or `runtime` on the path.

Their names are common, and a user's `train.py` in the working directory or in a folder of PYTHONPATH would hide ours.
Run as a script, this file does for a process of our own what the console script does for itself:
`python -P ddpm_rt/own_packages.py MODULE ARGUMENTS`.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from importlib.machinery import PathFinder
from pathlib import Path

PACKAGES = ("commands", "diffusion", "train", "export", "runtime", "benchmarks")
_ROOT = str(Path(__file__).resolve().parents[1])


def import_own_packages(*names: str) -> None:
    """Import these of `PACKAGES` from beside this one. Their modules are found through them from then on.

    A package of ours names those that it imports from, and no others: a program that uses it may have a `train` of
    its own.
    """
    for name in names:
        spec = PathFinder.find_spec(name, [_ROOT])
        if name in sys.modules or spec is None or spec.loader is None:
            continue
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


def command_of_own_process(module: str, *arguments: str) -> list[str]:
    """The command line that runs one of our modules in another process, from any working directory."""
    return [sys.executable, "-P", __file__, module, *arguments]


if __name__ == "__main__":
    import_own_packages("ddpm_rt", *PACKAGES)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
