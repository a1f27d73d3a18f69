"""A diffusers pipeline folder without its weights: which network it holds, and what that was trained to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.conditions import INT64, Condition
from diffusion.diffusers_config import DIFFUSERS_SPACINGS, process_from_diffusers
from diffusion.diffusers_fields import effective_fields
from diffusion.errors import InputError
from diffusion.json_text import read_json_object
from diffusion.number_checks import shown, whole_number
from diffusion.process import Process
from runtime.formats.train_record import TRAIN_JSON, TrainRecord

_PIPELINES = ("DDPMPipeline", "DDIMPipeline")
# Both describe a training process by the same keys; what else they hold concerns sampling, which is ours.
_SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
# Without train.json the data's gray levels are lost, and with them the likelihood: nobody is told to take it away.
_WAY_OUT = "correct the one that is wrong, or copy or train the checkpoint again"


@dataclass(frozen=True, eq=False)
class CheckpointFolder:
    """What the JSON files of a checkpoint say.

    Attributes:
        process: what the network was trained to do; its conditions are those of the network, without guidance.
        unet_config: the arguments of diffusers' `UNet2DModel`.
    """

    process: Process
    unet_config: dict[str, Any]


def read_checkpoint_folder(folder: Path) -> CheckpointFolder:
    """Read model_index.json, unet/config.json, scheduler/scheduler_config.json and, where it is, train.json.

    The process in train.json says what diffusers' files cannot: the gray levels of the data (256 without
    it) and the prediction type `score`. All that both say must agree.

    Raises:
        InputError: no such folder, another kind of pipeline, network or scheduler, or a contradiction.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such checkpoint folder, expected one that holds model_index.json; "
            "train one with `python -m train.run`, or name another"
        )
    index_path = folder / "model_index.json"
    if not index_path.exists() and (folder / "state").is_dir():
        raise InputError(
            f"{folder}: holds a training run that is not finished, expected model_index.json; "
            f"finish it with `python -m train.run --out {folder} --resume`"
        )
    index = _read_json(index_path)
    _check_class(index_path, index, _PIPELINES)
    if not isinstance(index.get("unet"), list) or index["unet"][-1:] != ["UNet2DModel"]:
        raise InputError(
            f"{index_path}: unet is {shown(index.get('unet'))}, expected ['diffusers', 'UNet2DModel']; "
            "choose a checkpoint of an unconditional DDPM"
        )
    scheduler = index.get("scheduler")
    if not isinstance(scheduler, list) or len(scheduler) != 2 or scheduler[1] not in _SCHEDULERS:
        raise InputError(
            f"{index_path}: scheduler is {shown(scheduler)}, expected ['diffusers', "
            f"{' or '.join(map(repr, _SCHEDULERS))}]; choose a checkpoint of an unconditional DDPM"
        )
    unet_path = folder / "unet" / "config.json"
    unet_config = effective_fields(_read_json(unet_path), str(unet_path))
    _check_class(unet_path, unet_config, ("UNet2DModel",))
    scheduler_path = folder / "scheduler" / "scheduler_config.json"
    scheduler_config = effective_fields(_read_json(scheduler_path), str(scheduler_path))
    _check_class(scheduler_path, scheduler_config, _SCHEDULERS)
    process = process_from_diffusers(
        scheduler_config, unet_config, source=str(scheduler_path), unet_source=str(unet_path)
    )
    process = replace(process, conditions=_label(unet_path, unet_config))
    record = TrainRecord.read(folder)
    if record is not None:
        process = _checked_process(folder / TRAIN_JSON, record.process, process, scheduler_config)
    _check_network(unet_path, unet_config, process)
    return CheckpointFolder(process, unet_config)


def _read_json(path: Path) -> dict[str, Any]:
    return read_json_object(
        path,
        "copy or train the checkpoint again",
        "expected a folder that `python -m train.run` or diffusers' DDPMPipeline.save_pretrained wrote; "
        "choose or copy the whole folder",
    )


def _check_class(path: Path, fields: Mapping[str, Any], expected: tuple[str, ...]) -> None:
    if fields.get("_class_name") not in expected:
        raise InputError(
            f"{path}: _class_name is {shown(fields.get('_class_name'))}, expected {' or '.join(expected)}; "
            "choose a checkpoint of an unconditional DDPM"
        )


def _label(path: Path, config: Mapping[str, Any]) -> tuple[Condition, ...]:
    """The class label of the network, if it has one; no file of diffusers says whether one is the null class.

    Raises:
        InputError: something else in the label's place.
    """
    if config.get("class_embed_type") is not None:
        raise InputError(
            f"{path}: class_embed_type is {shown(config['class_embed_type'])}, expected null: a class label is a whole "
            "number; choose another checkpoint"
        )
    num = config.get("num_class_embeds")
    if num is None:
        return ()
    return (Condition("y", INT64, classes=whole_number(num, f"{path}: num_class_embeds", 1)),)


def _num_labels(process: Process) -> int | None:
    return None if process.label is None else process.label.num_labels


def _checked_process(
    path: Path, process: Process, by_diffusers: Process, scheduler_config: Mapping[str, Any]
) -> Process:
    """The process of train.json, which must not contradict diffusers' files. Raises InputError if it does."""
    ours, theirs = process.schedule, by_diffusers.schedule
    pairs: dict[str, tuple[object, object]] = {
        "sample shape": (process.sample.chw, by_diffusers.sample.chw),
        "num_train_timesteps": (ours.num_train_timesteps, theirs.num_train_timesteps),
        "clip_sample": (process.clip_sample, by_diffusers.clip_sample),
        "number of conditions": (len(process.conditions), len(by_diffusers.conditions)),
        "number of classes and null classes": (_num_labels(process), _num_labels(by_diffusers)),
    }
    if process.prediction_type != "score":  # which diffusers has no name for
        pairs["prediction_type"] = (process.prediction_type, by_diffusers.prediction_type)
    if "variance_type" in scheduler_config:  # DDIMScheduler has none
        pairs["variance_type"] = (process.variance_type, by_diffusers.variance_type)
    if process.timestep_spacing is None:  # written before there was this field
        process = replace(process, timestep_spacing=by_diffusers.timestep_spacing)
    elif process.timestep_spacing in DIFFUSERS_SPACINGS:  # quadratic and logsnr have no name there
        pairs["timestep_spacing"] = (process.timestep_spacing, by_diffusers.timestep_spacing)
    for name, (found, expected) in pairs.items():
        if found != expected:
            raise InputError(
                f"{path}: {name} is {found!r}, but diffusers' files beside it say {expected!r}; {_WAY_OUT}"
            )
    if not np.allclose(ours.betas, theirs.betas, rtol=1e-9, atol=0.0):
        worst = int(np.argmax(np.abs(ours.betas - theirs.betas)))
        raise InputError(
            f"{path}: beta[{worst}] is {ours.betas[worst]:.6g}, but scheduler_config.json gives "
            f"{theirs.betas[worst]:.6g}; {_WAY_OUT}"
        )
    return process


def _check_network(path: Path, config: Mapping[str, Any], process: Process) -> None:
    shape, num_train_timesteps = process.sample, process.schedule.num_train_timesteps
    embedding = config.get("time_embedding_type", "positional")
    if embedding not in ("positional", "learned"):
        # 'fourier' is a function of log t, which is not finite at t = 0.
        raise InputError(
            f"{path}: time_embedding_type is {shown(embedding)}, expected 'positional' or 'learned'; "
            "choose a network that is conditioned on timesteps 0..T−1"
        )
    num_embeddings = config.get("num_train_timesteps")
    if embedding == "learned" and (not isinstance(num_embeddings, int) or num_embeddings < num_train_timesteps):
        raise InputError(
            f"{path}: num_train_timesteps is {shown(num_embeddings)}, expected at least the schedule's "
            f"{num_train_timesteps}, each of which needs an embedding; correct the scheduler's config"
        )
    times_halved = len(config.get("block_out_channels", ())) - 1
    if times_halved > 0 and (shape.height % 2**times_halved or shape.width % 2**times_halved):
        raise InputError(
            f"{path}: sample_size is {shape.height}×{shape.width}, expected multiples of {2**times_halved}: "
            f"the network halves it {times_halved} times; correct sample_size"
        )
