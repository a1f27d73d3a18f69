"""What the tests of runs in shards share: short runs, and what a folder holds, image by image."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from runtime.formats.run_manifest import RunManifest
from runtime.gather import with_shape
from runtime.runs.places import parse_place
from runtime.runs.shard_files import kept_indices
from runtime.runs.shard_folder import find_shards
from runtime.sample import main

ROOT = Path(__file__).parents[3]
RUN = ["--num", "23", "--start", "5", "--batch-size", "4", "--steps", "2", "--backend", "onnxruntime"]


def draw(out: str, *flags: str, run: list[str] = RUN) -> int:
    return main([*run, "--out", out, *flags])


def images_of(folder: str | Path) -> list[tuple[int, str]]:
    """(sample index, SHA-256 of its image), through the shards' records, whose hashes are checked."""
    run, done = find_shards(parse_place(str(folder)))
    run = with_shape(run, done)
    listed = []
    for shard in run.plan:
        if shard in done:
            record = run.record(shard, verify=True)
            indices = kept_indices(shard, record)
            images = run.images(shard, record) if indices else []
            listed += [
                (index, hashlib.sha256(image.tobytes()).hexdigest())
                for index, image in zip(indices, images, strict=True)
            ]
    return listed


def visible(folder: str | Path) -> set[str]:
    return {path.name for path in Path(folder).iterdir() if not path.name.startswith(".")}


def hidden(folder: str | Path) -> set[str]:
    return {path.name for path in Path(folder).iterdir() if path.name.startswith(".")}


def identity_of(folder: str | Path) -> dict:
    manifest = RunManifest.read(Path(folder))
    assert manifest is not None
    return manifest.identity


def started(*arguments: str) -> subprocess.Popen[str]:
    """`runtime.sample` in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "runtime.sample", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def workers_of(process: int) -> list[int]:
    """Its children that draw, not the one that multiprocessing keeps for what they share."""
    return [child for child in children_of(process) if "spawn_main" in _read(Path(f"/proc/{child}/cmdline"))]


def children_of(process: int) -> list[int]:
    stats = [_read(stat) for stat in Path("/proc").glob("[0-9]*/stat")]
    return [int(stat.split()[0]) for stat in stats if stat and int(stat.rsplit(")", 1)[1].split()[1]) == process]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended
        return ""
