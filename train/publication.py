"""A finished run as a folder that diffusers' `DDPMPipeline` loads, with our `train.json` beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import platform
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from commands.errors import reason
from commands.whole_files import set_mode
from diffusion.diffusers_config import process_to_diffusers
from diffusion.process import Process
from runtime.formats.train_record import METRICS, SAMPLES, TrainRecord, checkpoint_files
from train.network import make_network
from train.presets import NetworkConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"
_PACKAGES = ("ddpm-rt", "torch", "diffusers", "accelerate", "numpy")


def publish(
    folder: Path,
    weights: Mapping[str, Any],
    network_config: NetworkConfig,
    process: Process,
    facts: Mapping[str, Any],
    metrics: Path,
    samples: Any | None,
) -> None:
    """Write the pipeline, `metrics.jsonl`, `samples.png` and `train.json`: all of them, or the old ones stay.

    Other files stay as they are.

    Args:
        folder: of the run.
        weights: the averaged network's `state_dict`.
        network_config: its architecture.
        process: without the checkpoint's hash.
        facts: what else to write into `train.json`.
        metrics: the file to copy.
        samples: a PIL image, or None for no grid.

    Raises:
        InputError: the folder cannot be written.
    """
    from diffusers import DDPMPipeline, DDPMScheduler

    # Made anew on the CPU: plain memory layout, whatever the layout in training.
    network = make_network(network_config, process)
    network.load_state_dict({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    pipeline = DDPMPipeline(unet=network, scheduler=DDPMScheduler(**process_to_diffusers(process)))
    with checkpoint_files(folder).replaced() as temporary, failing_as_files():
        network.save_pretrained(temporary / "unet", safe_serialization=True)
        pipeline.scheduler.save_pretrained(temporary / "scheduler")
        (temporary / "model_index.json").write_text(pipeline.to_json_string(), encoding="utf-8")
        shutil.copyfile(metrics, temporary / METRICS)
        if samples is not None:
            samples.save(temporary / SAMPLES)
        weights_file = temporary / "unet" / WEIGHTS
        # safetensors lets only the owner read; every file must follow the umask, as the JSON files do.
        set_mode(weights_file, (temporary / METRICS).stat().st_mode)
        process = dataclasses.replace(process, checkpoint_sha256=hash_file(weights_file))
        config_sha256 = hash_file(temporary / "unet" / "config.json")
        TrainRecord(process, {**facts, "versions": _versions()}, config_sha256=config_sha256).write(temporary)


@contextlib.contextmanager
def failing_as_files() -> Iterator[None]:
    """Let a disk that fails under safetensors be an OSError, as it is everywhere else."""
    import safetensors

    try:
        yield
    except safetensors.SafetensorError as error:
        raise OSError(reason(error)) from error


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue  # run from a source tree that is not installed
    return versions
