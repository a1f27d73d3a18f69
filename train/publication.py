"""A finished run as a folder that diffusers' `DDPMPipeline` loads, with our `train.json` beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from commands.whole_files import whole_file, whole_folder, write_whole_text
from diffusion.diffusers_config import process_to_diffusers
from diffusion.process import Process
from runtime.formats.train_record import TRAIN_JSON, TrainRecord
from train.network import make_network
from train.presets import NetworkConfig
from train.run_folder import METRICS

WEIGHTS = "diffusion_pytorch_model.safetensors"
SAMPLES = "samples.png"
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
    """Write the pipeline, `metrics.jsonl`, `samples.png` and, last, `train.json`; each whole or not at all.

    A folder with a `train.json` is thus always complete. Other files stay as they are.

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
    (folder / TRAIN_JSON).unlink(missing_ok=True)
    with whole_folder(folder / "unet") as temporary:
        network.save_pretrained(temporary, safe_serialization=True)
        _settle_files(temporary)
        sha256, config_sha256 = hash_file(temporary / WEIGHTS), hash_file(temporary / "config.json")
    with whole_folder(folder / "scheduler") as temporary:
        pipeline.scheduler.save_pretrained(temporary)
        _settle_files(temporary)
    write_whole_text(folder / "model_index.json", pipeline.to_json_string())
    write_whole_text(folder / METRICS, metrics.read_text(encoding="utf-8"))
    if samples is None:
        (folder / SAMPLES).unlink(missing_ok=True)  # of an older run
    else:
        with whole_file(folder / SAMPLES) as temporary:
            samples.save(temporary)
    process = dataclasses.replace(process, checkpoint_sha256=sha256)
    TrainRecord(process, {**facts, "versions": _versions()}, config_sha256=config_sha256).write(folder)


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _settle_files(folder: Path) -> None:
    # safetensors lets only the owner read; every file must follow the umask, as the JSON files do.
    mode = next(folder.glob("*.json")).stat().st_mode
    for path in folder.iterdir():
        path.chmod(mode)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue  # run from a source tree that is not installed
    return versions
