"""A machine that is borrowed for minutes and reaches nothing: wheels that are carried there, files to bring back."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from benchmarks.device.compile_cache import COMPILE_CACHE
from commands.errors import reason
from commands.whole_files import whole_file
from diffusion.errors import InputError

PART_BYTES = 15 << 20
"""No file that is brought back is larger; borrowed machines limit them to 16 MiB."""
MAX_PARTS = 5
_LOG_BYTES = 1 << 20


def install_wheels(wheels: Path, work_folder: Path) -> None:
    """Install every wheel of a folder beside the checkout, for this process and those that it starts.

    Raises:
        InputError: there are none, or pip refuses them.
    """
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise InputError(f"--wheels: {wheels} holds no *.whl; docs/gpu-check.md says how to make the folder")
    site = (work_folder / "site").resolve()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    command += ["--no-cache-dir", "--upgrade", "--target", str(site), *map(str, files)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise InputError(f"--wheels: pip refused {wheels}: {' | '.join(done.stdout.strip().splitlines()[-3:])}")
    sys.path.insert(0, str(site))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))


def bring_back(folder: Path, report: Path, work_folder: Path) -> None:
    """Copy what a second visit needs: the report, the ends of all logs in one file, the compile cache in parts.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--bring-back: {folder} cannot be made ({reason(error)})") from error
    _write(folder / report.name, report.read_bytes())
    logs = io.BytesIO()
    with tarfile.open(fileobj=logs, mode="w:gz") as archive:
        for log in sorted((work_folder / "stages").glob("*")):
            content = log.read_bytes()[-_LOG_BYTES:]
            entry = tarfile.TarInfo(log.name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    _write(folder / "logs.tar.gz", logs.getvalue())
    with contextlib.suppress(FileNotFoundError):
        cache = (work_folder / COMPILE_CACHE).read_bytes()
        if len(cache) <= MAX_PARTS * PART_BYTES:  # `cat compile-cache.bin.*` makes it whole
            for number, first in enumerate(range(0, len(cache), PART_BYTES)):
                _write(folder / f"{COMPILE_CACHE}.{number}", cache[first : first + PART_BYTES])


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
