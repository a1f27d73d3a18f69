"""What the wheel holds and what the folders may hold."""

import subprocess
import tomllib
from pathlib import Path

import pytest

from ddpm_rt.own_packages import PACKAGES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_kernels_is_no_package():
    """Hugging Face's `kernels`, which diffusers imports, must not be shadowed."""
    assert not [path for path in TRACKED if path.startswith("kernels/") and path.endswith(".py")]


def test_the_wheel_holds_the_packages_and_no_tests():
    packages = set(PROJECT["tool"]["scikit-build"]["wheel"]["packages"])
    assert packages == {*PACKAGES, "ddpm_rt"}
    with_python = {path.split("/")[0] for path in TRACKED if path.endswith("__init__.py")}
    assert with_python - packages == {"tests"}


def test_extras_are_the_documented_ones():
    extras = PROJECT["project"]["optional-dependencies"]
    named = "cpu gpu tensorrt rtx lean train mnist export onnx serve ray store sign bench dev"
    assert set(extras) == set(named.split())
    everything = [requirement for extra in extras.values() for requirement in extra]
    # torchvision replaces a CPU torch; tensorrt's placeholder fails without NVIDIA's own index.
    assert not [name for name in everything if name.startswith("torchvision")]
    assert [name for name in everything if name.split(">")[0] == "tensorrt"] == extras["tensorrt"]


def test_no_merge_was_left_half_done():
    """Git's own marks, spelled so that this file has none."""
    marks = ("<" * 7 + " ", ">" * 7 + " ")
    texts = {path: (ROOT / path).read_bytes() for path in TRACKED if (ROOT / path).is_file()}
    left = {
        path
        for path, text in texts.items()
        for line in text.splitlines()
        if line.decode(errors="replace").startswith(marks)
    }
    assert left == set()


def test_no_file_says_nothing_by_its_name():
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [path for path in TRACKED if Path(path).stem in vague]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".onnx", ".plan", ".npz", ".npy", ".so"])
def test_no_weights_or_data_are_in_the_repository(suffix):
    assert not [path for path in TRACKED if path.endswith(suffix)]
