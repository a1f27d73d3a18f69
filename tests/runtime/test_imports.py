"""The runtime works where torch, diffusers and onnx are not installed."""

import os
import subprocess
import sys
from pathlib import Path

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.formats.onnx_seal import sealed
from tests.gaussian import GaussianNetwork

ROOT = Path(__file__).parents[2]
_BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "diffusers", "onnx", "accelerate", "safetensors", "datasets", "scipy"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])

sys.meta_path.insert(0, Blocked())
import runtime.sample
sys.exit(runtime.sample.main(sys.argv[1:]))
"""


def _sample_without_torch(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", _BLOCKED, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_sampling_needs_none_of_them(tmp_path):
    process = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear"))
    path = GaussianNetwork(process, 0.0, 0.5).save_onnx(tmp_path / "unet.onnx")
    foreign = path.read_bytes()
    path.write_bytes(sealed(foreign, "fp32"))
    done = _sample_without_torch(tmp_path, "--num", "2", "--steps", "3")
    assert done.returncode == 0, done.stderr
    path.write_bytes(foreign)
    done = _sample_without_torch(tmp_path, "--num", "2", "--steps", "3", "--overwrite")
    assert done.returncode == 4
    assert "reading it needs onnx, and the module 'onnx' is not installed; pip install \"ddpm-rt[onnx]\"" in done.stderr


def test_the_torch_engine_says_what_is_missing(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    done = _sample_without_torch(tmp_path, "--engine", "checkpoint")
    assert done.returncode == 4
    assert "needs PyTorch and diffusers" in done.stderr
    assert 'pip install "ddpm-rt[train]"' in done.stderr
