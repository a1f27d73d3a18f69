"""Plans for tests: files as `export.to_trt` writes them, and machines that have a GPU or have none."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.device.driver import DriverFacts, Gpu
from runtime.engines.trajectories import make_golden
from runtime.formats.digest import sealed_text
from runtime.formats.sidecar import SIDECAR_FORMAT, golden_path, sidecar_path
from runtime.formats.verification_record import VerificationRecord
from tests.gaussian import GaussianNetwork

PROCESS = Process(SampleShape(2, 4, 6), NoiseSchedule.make("linear", 100), variance_type="fixed_large")
NETWORK = GaussianNetwork(PROCESS, 0.2, 0.5)
A10 = Gpu(0, "NVIDIA A10", "8.6", 24 << 30, 72)
NO_GPU = DriverFacts(None, None, (), "no NVIDIA driver (libcuda.so.1 is not found)")
WITH_A10 = DriverFacts("580.95.05", "13.0", (A10,), "")
VERSIONS = {"tensorrt": "10.13.0.35", "tensorrt-rtx": "1.7.1.116"}
IO_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def engine_fields(
    network: GaussianNetwork, flavor: str, precision: str = "fp32", t_type: str = "int64"
) -> dict[str, Any]:
    """The object `engine` of a sidecar; for the A10 if the flavor is `tensorrt`, else for several GPUs."""
    channels, height, width = network.process.sample.chw
    io_type, is_rtx = IO_TYPES[precision], flavor == "tensorrt-rtx"
    return {
        "flavor": flavor,
        "builder": f"{'TensorRT-RTX' if is_rtx else 'TensorRT'} {VERSIONS[flavor]}",
        "builder_version": VERSIONS[flavor],
        "precision": precision,
        "inputs": {
            "x": {"type": io_type, "shape": ["N", channels, height, width]},
            "t": {"type": t_type, "shape": ["N"]},
            **{each.name: {"type": each.type, "shape": ["N", *each.shape]} for each in network.process.conditions},
        },
        "outputs": {
            "prediction": {"type": io_type, "shape": ["N", network.process.prediction_channels, height, width]}
        },
        "batch_profiles": [{"min": 1, "opt": 8, "max": 64}],
        "compute_capabilities": ["8.0", "8.6", "8.9"] if is_rtx else ["8.6"],
        "built_on": {"gpu": None, "driver": None} if is_rtx else {"gpu": "NVIDIA A10", "driver": "580.95.05"},
        "version_compatible": False,
        "hardware_compatibility": "none",
        "tf32": False,
        "builder_flags": [],
        "optimization_level": None,
        "timing_cache_sha256": None,
        "onnx_sha256": None,
        "time_path": {},
        "kept_in_float32": [],
        "group_norm": None,
        "group_norms": 0,
        "refittable": False,
        "stripped": False,
    }


def save_plan(
    path: Path,
    network: GaussianNetwork,
    engine: dict[str, Any],
    content: bytes = b"a plan",
    executed: bool = False,
    with_golden: bool = True,
) -> Path:
    """Write a plan, its sidecar and its reference predictions; return `path`."""
    path.write_bytes(content)
    golden = make_golden(network.process, network, engine["precision"]).to_bytes() if with_golden else b"none"
    golden_path(path).write_bytes(golden)
    sidecar = {
        "format": SIDECAR_FORMAT,
        "sha256": hashlib.sha256(content).hexdigest(),
        "process": network.process.to_json(),
        "engine": engine,
        "verification": VerificationRecord(True, executed=executed, reference="NumPy").to_json(),
        "golden_sha256": hashlib.sha256(golden).hexdigest(),
    }
    sidecar_path(path).write_text(sealed_text(sidecar), encoding="utf-8")
    return path
