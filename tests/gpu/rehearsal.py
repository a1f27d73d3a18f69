"""`make gpu-check` as on a borrowed machine, without a GPU: python -m tests.gpu.rehearsal

From a bare folder that holds the tracked files alone, with a Python in which this project is not installed, on the
device in software, start to report. The kernels are built by nvcc for a GPU that is not here; what runs is the same
source on the device in software, and the echo network in place of the U-Net.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from tests.kernels.software_build import ROOT, Build

STAGES = ("build", "noise", "step", "chain", "network", "overhead", "compiled", "bandwidth", "sanitizer", "eager",
          "network-fp32", "tensorrt")  # fmt: skip
"""All but the other batches, which take a device in software too long."""


def bare_folder(folder: Path) -> Path:
    """Copy what git would carry; return the copy."""
    bare = folder / "bare"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (bare / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, bare / name)
    return bare


def foreign_python(folder: Path) -> Path:
    """A Python that has the packages of this one and not this project: what is installed to be edited is left out."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    # A path that a .pth file names is searched; .pth files that lie there are not read.
    (site / "rehearsal.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv" / "bin" / "python"


def rehearse(
    folder: Path, stages: tuple[str, ...] = STAGES, kernels: Path | None = None, wheels: Path | None = None
) -> tuple[int, Path]:
    """Run the check; return its exit code and the folder of what comes back.

    Args:
        folder: an empty one.
        stages: to run.
        kernels: a module to take instead of building one.
        wheels: to install first.
    """
    bare, python, back = bare_folder(folder), foreign_python(folder), folder / "back"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    environment["DDPM_RT_SOFTWARE_KERNELS"] = str(Build().module())
    if kernels is not None:
        environment["DDPM_RT_REHEARSAL_KERNELS"] = str(kernels)
    command = [str(python), "-m", "benchmarks.gpu_check", "--machine", "tests.gpu.software_machine:SoftwareMachine"]
    command += ["--minutes", "60", "--bring-back", str(back), "--stages", *stages]
    command += ["--wheels", str(wheels)] if wheels else []
    return subprocess.run(command, cwd=bare, env=environment, check=False).returncode, back


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="as of benchmarks.gpu_check")
    parser.add_argument("--stages", nargs="+", default=STAGES, metavar="NAME", help="(default: all but other batches)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        code, back = rehearse(Path(folder), tuple(args.stages), wheels=args.wheels and args.wheels.resolve())
        report = json.loads((back / "gpu-check.json").read_text())
        for file in sorted(back.iterdir()):
            print(f"comes back: {file.name}, {file.stat().st_size} bytes")
    print(f"finished: {report['finished']}, exit code {code}")
    return code


if __name__ == "__main__":
    sys.exit(main())
