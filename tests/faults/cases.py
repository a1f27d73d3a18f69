"""All of the cases, by name."""

from __future__ import annotations

from collections.abc import Callable

from tests.faults.case import Case
from tests.faults.export_cases import converting, onnx, openvino, trt
from tests.faults.sampling_cases import check_run, check_shards, check_trajectory, sampling
from tests.faults.training_case import training

CASES: dict[str, Callable[[], Case]] = {
    **{
        name: lambda name=name: sampling(name, "--format", name, check=check_run)  # type: ignore[misc]
        for name in ("grid", "png", "npz", "npy")
    },
    "trajectory": lambda: sampling("trajectory", "--trajectory", "3", check=check_trajectory, resumes=False),
    **{
        f"shards-{name}": lambda name=name: sampling(  # type: ignore[misc]
            f"shards-{name}", "--format", name, "--shard-size", "4", check=check_shards
        )
        for name in ("npz", "png", "tar")
    },
    "onnx": onnx,
    "convert": converting,
    "train": training,
    "trt": trt,
    "openvino": openvino,
}
