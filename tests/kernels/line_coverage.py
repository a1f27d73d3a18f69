"""Which lines of the CUDA sources the tests run on the device in software: python -m tests.kernels.line_coverage"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.kernels.software_build import ROOT, Build

FILES = ("step.cu", "cuda_elements.h", "step.h", "philox.h", "float32_math.h", "cuda_graph.cpp")
TESTS = (
    "tests/gpu/test_noise.py",
    "tests/gpu/test_step.py",
    "tests/kernels/test_software_step.py",
    "tests/kernels/test_cuda_graph.py",
    "tests/runtime/device",
    "tests/runtime/chain",
)


def count_lines(folder: Path) -> dict[str, dict[int, int]]:
    """Run the tests on a build that counts.

    Args:
        folder: an empty one for what is built.

    Returns:
        By file of `FILES`: how often each line that holds code was run, all instances of a template together.
    """
    module = Build(coverage=True, cache=folder).module()
    environment = os.environ | {"DDPM_RT_SOFTWARE_KERNELS": str(module)}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *TESTS]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    counts: dict[str, dict[int, int]] = {name: {} for name in FILES}
    for data in folder.glob("*.gcda"):
        told = subprocess.run(
            ["gcov", "--json-format", "--stdout", str(data)], cwd=folder, capture_output=True, text=True, check=True
        )
        for document in map(json.loads, told.stdout.splitlines()):
            for file in document["files"]:
                lines = counts.get(Path(file["file"]).name, {})
                for line in file["lines"]:
                    lines[line["line_number"]] = lines.get(line["line_number"], 0) + line["count"]
    return counts


def main() -> int:
    """Print each file's share, and the lines that never ran."""
    if shutil.which("gcov") is None:
        print("gcov is not installed", file=sys.stderr)
        return 4
    with tempfile.TemporaryDirectory() as folder:
        counts = count_lines(Path(folder))
    for name, lines in counts.items():
        missed = sorted(line for line, count in lines.items() if count == 0)
        share = 100 * (1 - len(missed) / max(1, len(lines)))
        print(f"{name:20} {share:6.1f} % of {len(lines)} lines{f'; never: {missed}' if missed else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
