"""Runs Python where every look-up of a host, and every connection, is noted and refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHIM = Path(__file__).parent / "recording_resolver.c"
COMPILER = shutil.which("cc") or shutil.which("gcc")
AVAILABLE = sys.platform.startswith("linux") and COMPILER is not None
WHY_NOT = "needs Linux and a C compiler"

# What a library that reports its use leaves behind at once; it looks for its host some seconds later.
_TRACES = ("Microsoft", ".onnxruntime", "telemetry")


class RecordedLookups:
    """Runs Python as a user with an empty home would, outside any CI.

    Args:
        folder: for the compiled shim, the notes and the home.
    """

    def __init__(self, folder: Path) -> None:
        library, self._lookups, self._home = folder / "resolver.so", folder / "lookups", folder / "home"
        self._home.mkdir()
        subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl"], check=True)
        kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
        self._environment = kept | {
            "HOME": str(self._home),
            "LD_PRELOAD": str(library),
            "RECORDED_LOOKUPS": str(self._lookups),
            "PYTHONPATH": str(ROOT),
            "MPLBACKEND": "agg",
        }

    def run(
        self, *arguments: object, cwd: Path, **environment: str
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """What ended, and what it looked up, connected to, or left in the home of a library's reports."""
        self._lookups.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=self._environment | environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        noted = self._lookups.read_text().splitlines() if self._lookups.exists() else []
        left = [path.relative_to(self._home) for path in self._home.rglob("*")]
        return done, noted + [str(path) for path in left if any(name in str(path) for name in _TRACES)]
