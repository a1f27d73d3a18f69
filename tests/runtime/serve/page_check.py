"""`make page-check`: the page and /docs in a real Chromium without a window (Qt WebEngine), used by keyboard alone.

The browser lives in an environment of its own, `build/chromium`. Screenshots are left in `build/page`. A link that the
page offers, opened in another browser, must draw the same images, and these must be those of `runtime.sample`.

`python -m tests.runtime.serve.page_check [ENGINE]`; without one, a small network of known predictions.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.load.services import RunningService
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.sampler import Sampler
from tests.gaussian import GaussianNetwork

ENVIRONMENT, SCREENSHOTS = Path("build") / "chromium", Path("build") / "page"
PACKAGES = ("PyQt6==6.11.0", "PyQt6-WebEngine==6.11.0")
SLOTS = 8


def python_with_browser() -> Path:
    """The Python of the environment, which is made where there is none."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "complete").exists():
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (ENVIRONMENT / "complete").touch()
    return python


def pixels(url: str) -> np.ndarray:
    """An image of the page, uint8 [H, W]."""
    with Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))) as image:
        return np.asarray(image)


def main(engine: Path) -> None:
    """Serve, use the page, compare."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    python = python_with_browser()
    service = RunningService("slots", engine, None, SLOTS)
    try:
        driver = Path(__file__).with_name("page_driver.py")
        done = subprocess.run(
            [python, driver, service.url, SCREENSHOTS], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    finally:
        service.stop()
    found = json.loads((SCREENSHOTS / "found.json").read_text())
    order = ["num", "seed", "sampler", "steps", "draw"]
    assert [each for each in found["way"] if each in order][: len(order)] == order, found["way"]
    assert found["link"].endswith("/?num=5&seed=12&sampler=ddim&steps=20"), found["link"]
    assert found["again"] == found["images"]
    assert found["alternatives"] == [f"Image {place}" for place in range(5)]
    images = Sampler(engine, sampler="ddim", num_steps=20, batch_size=SLOTS).sample(SLOTS, seed=12)[:5]
    np.testing.assert_array_equal(np.stack([pixels(url) for url in found["images"]]), images[..., 0])
    assert "sampler" in found["refusal"], found["refusal"]
    assert set(found["origins"]) <= {service.url, "data"}, found["origins"]
    print(f"{found['agent'].split()[-2]}: the page by keyboard, its link, and /docs; screenshots in {SCREENSHOTS}")
    for line in found["console"]:
        print(f"console: {line}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            process = Process(SampleShape(1, 8, 8), NoiseSchedule.make("linear"))
            main(GaussianNetwork(process, 0.0, 0.5).save_onnx(Path(name) / "unet.onnx"))
