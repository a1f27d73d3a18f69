"""No command looks for a host, nor does any library that it loads: under a resolver that notes it and answers none."""

import shutil

import numpy as np
import pytest
from PIL import Image

from export import ExportRequest, export_onnx
from tests.checkpoints import save_tiny_checkpoint
from tests.recorded_lookups import AVAILABLE, WHY_NOT, RecordedLookups

pytestmark = pytest.mark.skipif(not AVAILABLE, reason=WHY_NOT)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    lookups = RecordedLookups(folder)
    return lambda *arguments, cwd=folder: lookups.run(*arguments, cwd=cwd)


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
# The commands that the pages show are run so by tests/test_docs.py.
LARGE = [
    ["train.run", "--data", "images", "--out", "folder", *TINY, "--num-samples", "1"],
    ["train.run", "--data", "described", "--out", "described_run", *TINY, "--num-samples", "0"],
    ["export.to_onnx", "--checkpoint", "checkpoint", "--fp16", "--out", "fp16.onnx"],
    ["runtime.sample", *FEW, "--backend", "onnxruntime", "--out", "s1"],
    ["runtime.sample", *FEW, "--backend", "openvino", "--out", "s2"],
    ["benchmarks.likelihood", "--num", "8", "--evaluations", "64", "--levels", "17"],
    ["benchmarks.chain", "--engine", "unet.onnx", "--steps", "2", "--rounds", "1", "--batch-sizes", "1"],
    ["benchmarks.quality", "--num", "64", "--steps", "2", "--seeds", "1", "--samplers", "ddpm", "--rounds", "1"],
    ["benchmarks.compare", "--steps", "2", "--rounds", "1", "--batch-sizes", "1", "--checkpoint", "checkpoint"],
]
SMALL = [
    ["train.binary", "--steps", "2", "--timesteps", "5", "--num-samples", "1"],
    ["export.mlp_to_onnx", "--checkpoint", "runs/heartbeat"],
    ["runtime.sample_bits", "--num", "1"],
    ["train.swiss_roll", "--steps", "2"],
    ["benchmarks.kernels", "--shape", "1", "1", "8", "8", "--rounds", "2", "--threads", "1"],
]


@pytest.mark.slow
@pytest.mark.parametrize("commands", [LARGE, SMALL], ids=["large", "small"])
def test_no_command_looks_for_a_host(run, tmp_path, commands):
    images, described = tmp_path / "images", tmp_path / "described"
    images.mkdir()
    rng = np.random.default_rng(0)
    for place in range(24):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(images / f"{place}.png")
    shutil.copytree(images, described)  # with its table, a folder for the library datasets
    rows = [f"{path.name},{place}" for place, path in enumerate(sorted(described.iterdir()))]
    (described / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    if commands is LARGE:
        save_tiny_checkpoint(tmp_path / "checkpoint")
        export_onnx(ExportRequest(tmp_path / "unet.onnx", tmp_path / "checkpoint"))
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
