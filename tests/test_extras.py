"""Each extra is enough for what README says of it, and what it lacks is one line that names the extra: exit code 4."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from constraints.requirements import requirements
from export import ExportRequest, export_onnx, export_openvino
from tests.checkpoints import LEAST, save_tiny_checkpoint

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHILD = Path(__file__).with_name("extras_child.py")
OURS = {"ddpm_rt", "commands", "diffusion", "train", "export", "runtime", "benchmarks", "_distutils_hack"}

COMMANDS = {
    "sample onnx": "runtime.sample --engine unet.onnx --num 1 --steps 2 --overwrite --out a",
    "sample openvino": "runtime.sample --engine unet.xml --num 1 --steps 2 --overwrite --out b",
    "sample folder": "runtime.sample --engine checkpoint --num 1 --steps 2 --overwrite --out c",
    "sample ray": "runtime.sample --engine unet.onnx --num 4 --steps 2 --ray local --out o",
    "sample store": "runtime.sample --engine unet.onnx --num 4 --steps 2 --out s3://bucket/run",
    "list samplers": "runtime.sample --list-samplers",
    "inspect": "export.inspect unet.xml",
    "serve": "runtime.serve --engine none.onnx --port 0",
    "train": "train.run --data digits --steps 1 --batch-size 2 --num-samples 0 --held-out 2 --out d",
    "swiss roll": "train.swiss_roll --steps 2 --out e",
    "heartbeat": "train.binary --steps 2 --timesteps 4 --num-samples 1 --out f",
    "onnx": "export.to_onnx --checkpoint checkpoint --out g.onnx",
    "onnx fp16": "export.to_onnx --checkpoint checkpoint --fp16 --out h.onnx",
    "openvino": "export.to_openvino --checkpoint checkpoint --out i.xml",
    "openvino of onnx": "export.to_openvino --onnx unet.onnx --out j.xml",
    "mlp": "export.mlp_to_onnx --checkpoint swiss_roll --out k.onnx",
    "tensorrt": "export.to_trt --flavor rtx --checkpoint checkpoint --out l.plan",
    "kernels": "benchmarks.kernels --shape 1 1 8 8 --rounds 1 --threads 1",
    "likelihood": "benchmarks.likelihood --engine checkpoint --num 2 --evaluations 8 --levels 17 --plot m.png",
    "compare": "benchmarks.compare --checkpoint none --out n.json",
    "quality": "benchmarks.quality --engine none.onnx",
    "load": "benchmarks.load --engine none.onnx",
    "roll": "benchmarks.swiss_roll --engine none.onnx",
}
WORKS_ON = {
    "": ["list samplers", "inspect"],
    "cpu": ["list samplers", "inspect", "sample onnx", "sample openvino", "openvino of onnx"],
    "cpu,serve": ["list samplers", "sample onnx"],
    "train": ["list samplers", "inspect", "sample folder", "train", "swiss roll", "heartbeat"],
    "export": ["list samplers", "inspect", "sample onnx", "sample folder", "onnx", "onnx fp16", "mlp"],
    "cpu,export": ["list samplers", "inspect", "sample onnx", "sample openvino", "openvino", "openvino of onnx"],
    "rtx": ["list samplers", "inspect"],
    "rtx,export": ["list samplers", "inspect", "tensorrt"],
    "bench": ["inspect", "kernels", "likelihood", "sample openvino", "onnx", "train"],
}
QUICK = ("", "cpu", "cpu,serve", "rtx")  # the others import torch
# Bad input that is only noticed once everything is there.
BAD_INPUT_ON = {"cpu,serve": ["serve"], "bench": ["compare", "quality", "load", "roll"]}
LACKING = {
    "": set(COMMANDS) - set(WORKS_ON[""]),
    "cpu": set(COMMANDS) - set(WORKS_ON["cpu"]),
    "cpu,serve": set(),
    "train": {"sample onnx", "sample openvino", "onnx", "onnx fp16", "openvino", "mlp", "tensorrt", "likelihood",
              "compare", "quality", "load", "roll"},
    "export": {"sample openvino", "train", "openvino", "tensorrt", "likelihood", "compare", "quality", "load", "roll"},
    "cpu,export": {"train", "tensorrt"},
    "rtx": set(COMMANDS) - set(WORKS_ON[""]),
    "rtx,export": {"train", "openvino"},
    "bench": set(),
}  # fmt: skip


@cache
def closure(extras: str) -> frozenset[str]:
    """The distributions that pip would install with these extras, by canonical name."""
    found, left = set(), [Requirement(text) for text in requirements(PROJECT, [e for e in extras.split(",") if e])]
    while left:
        wanted = left.pop()
        key = (canonical(wanted.name), frozenset(wanted.extras))
        if key in found:
            continue
        found.add(key)
        try:
            needs = distribution(wanted.name).requires or []
        except PackageNotFoundError:
            continue  # on other systems
        for text in needs:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ("", *wanted.extras)):
                left.append(needed)
    return frozenset(name for name, _ in found)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def installed_modules() -> dict[str, frozenset[str]]:
    """The distributions, by canonical name, that each importable name belongs to. It reads every file list: once."""
    return {module: frozenset(map(canonical, names)) for module, names in packages_distributions().items()}


def modules_of(extras: str) -> set[str]:
    installed = closure(extras)
    return {module for module, distributions in installed_modules().items() if distributions & installed}


def modules_without(extras: str) -> list[str]:
    """What cannot be imported where only these extras are installed."""
    return sorted(installed_modules().keys() - modules_of(extras) - OURS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands need from the ones before them."""
    from train import swiss_roll

    path = tmp_path_factory.mktemp("extras")
    save_tiny_checkpoint(path / "checkpoint", unet=LEAST, num_train_timesteps=20)
    export_onnx(ExportRequest(path / "unet.onnx", path / "checkpoint"))
    export_openvino(ExportRequest(path / "unet.xml", onnx=path / "unet.onnx"))
    assert swiss_roll.main(["--steps", "2", "--out", str(path / "swiss_roll")]) == 0
    return path


def run_all(folder: Path, extras: str, names: list[str]) -> dict[str, tuple[int, str]]:
    words = [[*COMMANDS[name].split()] for name in names]
    files = [folder / f"{extras or 'base'}_{name}.json" for name in ("absent", "commands", "result")]
    for file, content in zip(files, (modules_without(extras), words), strict=False):
        file.write_text(json.dumps(content))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "2",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", CHILD, *files],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(names, map(tuple, json.loads(files[-1].read_text())), strict=True))


def test_the_base_is_small() -> None:
    assert closure("") == {"numpy", "pillow", "tqdm"}
    assert not {"torch", "diffusers", "onnxscript"} & closure("cpu")
    assert not {"torchvision", "psutil"} & (closure("export") | closure("cpu"))


@pytest.mark.parametrize(
    "extras",
    [
        pytest.param(extras, marks=[] if extras in QUICK else pytest.mark.slow, id=extras or "base")
        for extras in WORKS_ON
    ],
)
def test_an_extra_is_enough_or_the_line_names_what_is_missing(folder: Path, extras: str) -> None:
    lacking, bad = sorted(LACKING[extras]), BAD_INPUT_ON.get(extras, [])
    found = run_all(folder, extras, [*WORKS_ON[extras], *bad, *lacking])
    wrong = {
        name: result
        for name, result in found.items()
        if (name in lacking and not (result[0] == 4 and re.search(r'pip install "?ddpm-rt\[', result[1])))
        or (name in bad and result[0] != 2)
        or (name in WORKS_ON[extras] and result[0] != 0)
    }
    assert not wrong, json.dumps(wrong, indent=1)


def test_every_extra_that_is_named_exists() -> None:
    from commands.errors import _EXTRA_OF, _EXTRAS

    named = {extra for extras in _EXTRAS.values() for extra in extras} | set(_EXTRA_OF.values())
    assert named <= set(PROJECT["optional-dependencies"])
    for module, extras in _EXTRAS.items():
        for extra in extras:
            if extra not in ("gpu", "tensorrt"):  # not installed here
                assert module in modules_of(extra), (module, extra)
