"""No command looks for a host, nor does any library that it loads: under a resolver that notes it and answers none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SHIM = Path(__file__).parent / "recording_resolver.c"
COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux") or COMPILER is None, reason="needs Linux and a C compiler"),
]

# What a library that reports its use leaves behind at once; it looks for its host some seconds later.
_TRACES = ("Microsoft", ".onnxruntime", "telemetry")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run Python as a user with an empty home would, outside any CI; what was looked up."""
    folder = tmp_path_factory.mktemp("network")
    library, lookups, home = folder / "resolver.so", folder / "lookups", folder / "home"
    home.mkdir()
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl"], check=True)
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    environment = kept | {
        "HOME": str(home),
        "LD_PRELOAD": str(library),
        "RECORDED_LOOKUPS": str(lookups),
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "agg",
    }

    def run_python(*arguments, cwd=folder):
        lookups.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        found = lookups.read_text().splitlines() if lookups.exists() else []
        traces = [str(path) for path in home.rglob("*") if any(name in str(path.relative_to(home)) for name in _TRACES)]
        return done, found + traces

    return run_python


def test_the_resolver_notes_what_is_looked_up(run):
    done, found = run("-c", "import socket; socket.getaddrinfo('example.invalid', 80)")
    assert done.returncode == 1
    assert found == ["getaddrinfo example.invalid"]
    done, found = run("-c", "import socket; socket.create_connection(('127.0.0.1', 9))")
    assert found == ["getaddrinfo 127.0.0.1"]
    done, found = run("-c", "import socket as s; s.socket().connect(('127.0.0.1', 9))")
    assert found == ["connect "]


TINY = ["--steps", "2", "--batch-size", "4"]
FEW = ["--num", "2", "--steps", "2"]
# In the order in which each finds what it reads.
CHAIN = [
    ["train.run", *TINY, "--num-samples", "0"],
    ["train.run", "--data", "images", "--out", "folder", *TINY, "--num-samples", "1"],
    ["train.run", "--data", "described", "--out", "described_run", *TINY, "--num-samples", "0"],
    ["export.to_onnx"],
    ["export.to_onnx", "--fp16", "--out", "fp16.onnx"],
    ["export.to_openvino"],
    ["runtime.sample", *FEW, "--backend", "onnxruntime", "--out", "s1"],
    ["runtime.sample", *FEW, "--backend", "openvino", "--out", "s2"],
    ["runtime.sample", *FEW, "--engine", "unet.xml", "--out", "s3"],
    ["runtime.sample", *FEW, "--engine", "runs/digits", "--out", "s4"],
    ["benchmarks.likelihood", "--num", "8", "--evaluations", "64"],
    ["benchmarks.chain", "--engine", "unet.onnx", "--steps", "2", "--rounds", "1", "--batch-sizes", "1"],
    ["benchmarks.quality", "--num", "64", "--steps", "2", "--seeds", "1", "--samplers", "ddpm", "--rounds", "1"],
    ["benchmarks.compare", "--steps", "2", "--rounds", "1", "--batch-sizes", "1", "--checkpoint", "runs/digits"],
]
SMALL = [
    ["train.binary", "--steps", "2", "--timesteps", "5", "--num-samples", "1"],
    ["export.mlp_to_onnx", "--checkpoint", "runs/heartbeat"],
    ["runtime.sample_bits", "--num", "1"],
    ["train.swiss_roll", "--steps", "2"],
    ["benchmarks.kernels", "--shape", "1", "1", "8", "8", "--rounds", "2", "--threads", "1"],
]


@pytest.mark.slow
@pytest.mark.parametrize("commands", [CHAIN, SMALL], ids=["chain", "small"])
def test_no_command_looks_for_a_host(run, tmp_path, commands):
    images, described = tmp_path / "images", tmp_path / "described"
    images.mkdir()
    rng = np.random.default_rng(0)
    for place in range(24):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(images / f"{place}.png")
    shutil.copytree(images, described)  # with its table, a folder for the library datasets
    rows = [f"{path.name},{place}" for place, path in enumerate(sorted(described.iterdir()))]
    (described / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    for name, *arguments in commands:
        done, found = run("-m", name, *arguments, cwd=tmp_path)
        assert found == [], name
        assert done.returncode == 0, (name, done.stderr)


def test_nor_does_the_python_interface(run):
    """Whatever of ours is imported first, its libraries are told before they are imported."""
    for package in ("runtime", "export.onnx_check", "runtime.engines.onnx_runtime"):
        done, found = run("-c", f"import {package}, onnxruntime, openvino")
        assert done.returncode == 0, done.stderr
        assert found == [], package
