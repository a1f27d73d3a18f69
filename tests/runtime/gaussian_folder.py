"""A folder with a network whose samples are known, for what a user types in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.formats.onnx_seal import sealed
from tests.gaussian import GaussianNetwork

PROCESS = Process(SampleShape(1, 8, 8, 17), NoiseSchedule.make("linear"), variance_type="fixed_large")
NETWORK = GaussianNetwork(PROCESS, mean=-0.3, std=0.4)


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def seal_file(path: Path) -> Path:
    """Leave a file as `export.to_onnx` leaves it; return `path`."""
    path.write_bytes(sealed(path.read_bytes(), "fp32"))
    return path
