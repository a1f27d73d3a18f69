"""`make triton-check`: a repository of `export.to_triton` in the real Triton server, of nvidia-pytriton, on the CPU.

The server and its client live in an environment of their own, `build/triton`. That server has the Python backend alone,
so the bare network's configuration is read by it, and by Triton's schema, but not run. Its backend was built before
NumPy 2: the model runs with the NumPy of that environment, and everything else of ours. It needs the shared library of
Python (Debian's libpython3.11).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from export.to_triton import TritonRequest, export_triton
from runtime.sampler import Sampler
from runtime.serve.server import listen
from tests.gaussian import GaussianNetwork

ENVIRONMENT = Path("build") / "triton"
PACKAGES = ("nvidia-pytriton==0.7.0",)
SLOTS, START_S = 3, 120.0
QUESTIONS = [
    {"num": 5, "seed": 1, "steps": 200, "preview_every": 20},
    {"num": 1, "seed": 2**64 - 1, "start": 3, "steps": 7, "sampler": "unipc"},
    {"num": 2, "seed": 4, "steps": 30, "sampler": "ddim"},
    {"num": 0},
    {"steps": 4, "colour": "red"},
    {"num": 256, "steps": 1000, "deadline_s": 0.01},
    *({"seed": seed, "steps": 10 + seed} for seed in range(20)),
]
ERRORS = {
    "num: Input should be greater than or equal to 1",
    "colour: Extra inputs are not permitted",
    "its deadline of 0.01 s has passed",
}


def environment() -> Path:
    """The packages of the environment, which is made where there is none."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "complete").exists():
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (ENVIRONMENT / "complete").touch()
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())


@contextlib.contextmanager
def server(packages: Path, folder: Path, repository: Path) -> Iterator[str]:
    """The server, with the addresses of HTTP and gRPC."""
    triton = packages / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(triton / "backends", folder / "backends")
    stub = folder / "backends" / "python" / "triton_python_backend_stub"
    shutil.copy(triton / "python_backend_stubs" / version / stub.name, stub)
    stub.chmod(0o755)
    (folder / "numpy").mkdir()
    for name in ("numpy", "numpy.libs"):
        (folder / "numpy" / name).symlink_to(packages / name)
    # The backend's Python looks at neither PYTHONPATH nor an environment.
    model = repository / "ddpm" / "1" / "model.py"
    ours = sysconfig.get_path("purelib")
    path = f"import site, sys; site.addsitedir({ours!r}); sys.path.insert(0, {str(folder / 'numpy')!r})\n"
    model.write_text(path + model.read_text())
    with listen("127.0.0.1", 0) as first, listen("127.0.0.1", 0) as second:
        http, grpc = (sock.getsockname()[1] for sock in (first, second))
    flags = {
        "model-repository": repository,
        "backend-directory": folder / "backends",
        "http-address": "127.0.0.1",
        "grpc-address": "127.0.0.1",
        "http-port": http,
        "grpc-port": grpc,
        "allow-metrics": "false",
        "exit-on-error": "false",
    }
    libraries = packages / "nvidia_pytriton.libs"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [triton / "bin" / "tritonserver", *(f"--{name}={value}" for name, value in flags.items())],
            env=os.environ | {"LD_LIBRARY_PATH": str(libraries)},
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(f"http://127.0.0.1:{http}/v2/models/ddpm/ready", process, folder / "log")
        yield f"127.0.0.1:{grpc}"
    finally:
        process.terminate()
        process.wait(60)


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    """Until the model is ready."""
    end = time.monotonic() + START_S
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(url):
            return
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"Triton did not start:\n{log.read_text()[-4000:]}")
        time.sleep(0.2)


def main() -> None:
    """Export, serve, ask, compare."""
    packages = environment().resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = Process(SampleShape(1, 8, 8), NoiseSchedule.make("linear"))
        engine = GaussianNetwork(process, 0.0, 0.5).save_onnx(folder / "unet.onnx")
        repository = folder / "models"
        export_triton(TritonRequest(engine, repository, slots=SLOTS, threads=1))
        configs = [each.read_text() for each in sorted(repository.glob("*/config.pbtxt"))]
        texts = [json.dumps(body) for body in QUESTIONS]
        (folder / "questions.json").write_text(json.dumps({"model": "ddpm", "texts": texts, "configs": configs}))
        with server(packages, folder, repository) as address:
            client = Path(__file__).with_name("triton_client.py")
            words = [ENVIRONMENT / "bin" / "python", client, address, folder / "questions.json", folder / "answers.npz"]
            subprocess.run(words, check=True, timeout=300)
            log = (folder / "log").read_text()
        compare(engine, folder / "answers.npz")
    # The configuration of the network was read; only its backend is not there.
    assert "unable to find backend library for backend 'onnxruntime'" in log, log[-4000:]
    print(f"{len(QUESTIONS)} requests: images as of runtime.sample, errors as of the service")


def compare(engine: Path, answers: Path) -> None:
    """Every answer with what it must be."""
    with np.load(answers) as found:
        errors, previews = set(found["errors"].tolist()), found["previews"]
        assert len(errors) == len(ERRORS), errors
        assert all(any(text in error for error in errors) for text in ERRORS), errors
        assert previews[0] > 0, previews
        assert not previews[1:].any(), previews
        images = {int(name): found[name] for name in found.files if name.isdecimal()}
    assert len(images) == len(QUESTIONS) - len(ERRORS)
    for number, those in images.items():
        body = dict(QUESTIONS[number])
        num, steps = body.get("num", 1), body["steps"]
        sampler = Sampler(engine, num_steps=steps, sampler=body.get("sampler", "ddpm"), batch_size=SLOTS, threads=1)
        expected = sampler.sample(-(-num // SLOTS) * SLOTS, body["seed"], body.get("start", 0))[:num]
        np.testing.assert_array_equal(those, expected, err_msg=str(body))


if __name__ == "__main__":
    main()
