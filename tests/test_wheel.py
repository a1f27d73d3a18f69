"""The wheel, in an environment of its own with `[cpu]` alone, from a folder where everything is called as ours is."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from ddpm_rt.own_packages import PACKAGES
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from export import ExportRequest, export_openvino
from runtime import Sampler
from tests.gaussian import GaussianNetwork

ROOT = Path(__file__).parents[1]
# The compiled kernels are taken from the folder where `make build` left them.
BUILD = ("wheel", "--quiet", "--no-build-isolation", "--no-deps", "--disable-pip-version-check")


def run(words: list[str], folder: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, f"{words}\n{done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a fresh environment."""
    folder = tmp_path_factory.mktemp("installed")
    run([sys.executable, "-m", "pip", *BUILD, "--wheel-dir", str(folder), str(ROOT)], folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "environment", with_pip=True)
    pip = [str(folder / "environment" / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    run([*pip, "--disable-pip-version-check", f"ddpm-rt[cpu] @ {wheel.as_uri()}"], folder)
    return folder / "environment" / "bin"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    for name in (*PACKAGES, "ddpm_rt", "numpy", "json"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('a {name}.py of the user was imported')")
    for name in ("runtime", "train"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('a folder of the user was imported')")
    return tmp_path


@pytest.mark.slow
def test_the_wheel_samples_from_a_hostile_folder(binaries: Path, hostile: Path) -> None:
    process = Process(SampleShape(1, 8, 8), NoiseSchedule.make("linear"))
    onnx = GaussianNetwork(process, -0.3, 0.4).save_onnx(hostile / "unet.onnx")
    script = str(binaries / "ddpm-rt")
    assert run([script, "--version"], hostile).stdout.startswith("ddpm-rt ")
    for backend in ("onnxruntime", "openvino"):
        run(
            [script, "sample", "--backend", backend, "--num", "4", "--steps", "5", "--format", "npy", "--out", backend],
            hostile,
        )
        samples = np.load(hostile / backend / "samples.npy")
        np.testing.assert_allclose(samples, Sampler(onnx, num_steps=5).sample_float32(4), rtol=0, atol=1e-5)
    export_openvino(ExportRequest(hostile / "unet.xml", onnx=onnx))
    run([script, "sample", "--engine", "unet.xml", "--num", "4", "--steps", "5", "--out", "engine"], hostile)
    assert (hostile / "engine" / "grid.png").is_file()


@pytest.mark.slow
def test_what_is_not_installed_is_named(binaries: Path, hostile: Path) -> None:
    """With `[cpu]` alone there is no PyTorch: each command that needs it says so in one line."""
    for words in (["train"], ["export", "trt"], ["bench", "kernels"]):
        done = run([str(binaries / "ddpm-rt"), *words], hostile, code=4)
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1, done.stderr
        assert 'pip install "ddpm-rt[' in done.stderr


@pytest.mark.slow
def test_every_command_is_there_and_typed(binaries: Path, hostile: Path) -> None:
    for words in (["sample"], ["train"]):  # the others' help needs their packages
        name = " ".join(("ddpm-rt", *words))
        assert run([str(binaries / "ddpm-rt"), *words, "--help"], hostile).stdout.startswith(f"usage: {name} ")
    where = "import importlib.util, sys; print(*[importlib.util.find_spec(name).origin for name in sys.argv[1:]])"
    origins = run([str(binaries / "python"), "-P", "-c", where, *PACKAGES, "ddpm_rt"], hostile).stdout.split()
    assert all(Path(origin).with_name("py.typed").is_file() for origin in origins)
