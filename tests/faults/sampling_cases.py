"""Runs of `runtime.sample` that replace another run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.formats.run_manifest import MANIFEST, RunManifest
from runtime.runs.shard_folder import find_shards
from runtime.sample import main
from runtime.trajectory import trajectory_files
from tests.faults.case import Case, Contents, contents, same
from tests.gaussian import GaussianNetwork

_PROCESS = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", 50))
_PARTIAL = "samples.partial.npy"


def write_networks(inputs: Path) -> None:
    GaussianNetwork(_PROCESS, 0.2, 0.5).save_onnx(inputs / "unet.onnx")
    GaussianNetwork(_PROCESS, -0.4, 0.3).save_onnx(inputs / "other.onnx")


def sampling(name: str, *flags: str, check: Callable[[Path, Contents, Contents], None], resumes: bool = True) -> Case:
    run = [
        "--engine",
        "../inputs/unet.onnx",
        "--num",
        "5",
        "--batch-size",
        "2",
        "--steps",
        "2",
        "--threads",
        "1",
        "--backend",
        "onnxruntime",
    ]
    old, new = ([*run, *flags, "--seed", seed] for seed in "01")
    again = ([*new, "--overwrite"], [*new, "--resume"])
    over = [*new, "--overwrite"]
    return Case(name, main, old, over, again if resumes else again[:1], check, same, write_networks, in_parent=True)


def check_run(folder: Path, old: Contents, new: Contents) -> None:
    """A run that is said to be done is there; results of two runs never lie beside each other."""
    out, found = folder / "samples", contents(folder)
    manifest = RunManifest.read(out)
    assert manifest is not None
    of_old = manifest.identity == json.loads(old[f"samples/{MANIFEST}"])["identity"]
    expected = old if of_old else new
    results = {
        name: content
        for name, content in found.items()
        if not name.endswith((MANIFEST, _PARTIAL)) and "traj" not in name
    }
    assert {name: expected.get(name) for name in results} == results
    if manifest.done == 5 and f"samples/{_PARTIAL}" not in found:
        assert results.keys() == {name for name in expected if not name.endswith(MANIFEST) and "traj" not in name}


def check_trajectory(folder: Path, old: Contents, new: Contents) -> None:
    check_run(folder, old, new)
    files = trajectory_files(folder / "samples")
    found = {f"samples/{name}": files.current(name) for name in files.entries}
    current = {name: path.read_bytes() for name, path in found.items() if path.exists()}
    old, new = ({name: result[name] for name in found} for result in (old, new))
    # The older one is removed file by file, as the user asked for.
    assert current == new or all(current[name] == old[name] for name in current)
    visible = {name: content for name, content in contents(folder).items() if name in found}
    assert any(all(content == result[name] for name, content in visible.items()) for result in (old, new))


def check_shards(folder: Path, old: Contents, new: Contents) -> None:
    out = folder / "samples"
    manifest = RunManifest.read(out)
    assert manifest is not None
    of_old = manifest.identity == json.loads(old[f"samples/{MANIFEST}"])["identity"]
    expected = old if of_old else new
    run, done = find_shards(out)
    for shard in done:
        run.record(shard, verify=True)
        name = f"samples/{run.file(shard)}"
        found = {each: content for each, content in contents(folder).items() if each.startswith(name)}
        assert found == {each: content for each, content in expected.items() if each.startswith(name)}
    if not of_old:
        assert not any(content == old.get(name) for name, content in contents(folder).items() if "shard-" in name)
