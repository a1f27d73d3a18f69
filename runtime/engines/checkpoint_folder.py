"""A diffusers folder without its weights: which network it holds, and what that was trained to do.

The layouts are those that diffusers loads: `unet/` and `scheduler/` beside model_index.json, what they hold in the root
beside it, or a network alone, whose process flags tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from commands.program import say
from diffusion.conditions import INT64, MAX_CLASSES, Condition
from diffusion.diffusers_config import (
    DIFFUSERS_SPACINGS,
    check_prediction_channels,
    process_from_diffusers,
    shape_from_diffusers,
)
from diffusion.diffusers_fields import check_unet_fields, effective_fields
from diffusion.diffusers_schedulers import DEFAULT_SCHEDULER, SchedulerClass, scheduler_class
from diffusion.errors import InputError, in_file
from diffusion.json_text import read_json_object
from diffusion.number_checks import shown, whole_number
from diffusion.process import Process
from runtime.formats.train_record import TRAIN_JSON, TrainRecord, checkpoint_files
from runtime.process_flags import ProcessFlags

MODEL_INDEX, UNET_CONFIG, SCHEDULER_CONFIG = "model_index.json", "config.json", "scheduler_config.json"
# Their loops call the network once a step and nothing else; a scheduler of another one may still be no DDPM's.
_PIPELINES = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "RePaintPipeline")
_OTHER_PARTS = {
    "text_encoder": "text-to-image: its network is conditioned on text",
    "vae": "latent diffusion: its network denoises latents, not pixels",
    "vqvae": "latent diffusion: its network denoises latents, not pixels",
    "movq": "latent diffusion: its network denoises latents, not pixels",
}
_FLAGS = {
    "prediction_type": "prediction-type",
    "schedule": "beta-schedule",
    "variance_type": "variance-type",
    "clip_sample": "clip-sample",
}
_ANOTHER = "choose a checkpoint of an unconditional DDPM"
# Without train.json the data's gray levels are lost, and with them the likelihood: never suggest removing it.
_WAY_OUT = "correct the one that is wrong, or copy or train the checkpoint again"


@dataclass(frozen=True, eq=False)
class CheckpointFolder:
    """What the JSON files of a checkpoint say.

    Attributes:
        process: what the network was trained to do.
        unet_config: the arguments of diffusers' `UNet2DModel`.
        unet_folder: where the network's config.json and weights lie.
        origins: where the process's prediction_type, schedule, variance_type and clip_sample were found.
    """

    process: Process
    unet_config: dict[str, Any]
    unet_folder: Path
    origins: Mapping[str, str]


def holds_network_alone(folder: Path) -> bool:
    """Whether this is the folder of a network that says nothing of its process, so that flags must."""
    return _is_no_pipeline(folder) and not (folder / SCHEDULER_CONFIG).exists()


def read_checkpoint_folder(folder: Path, flags: ProcessFlags | None = None) -> CheckpointFolder:
    """Read model_index.json, the configurations of the network and the scheduler and, where it is, train.json.

    The process in train.json says what diffusers' files cannot: the gray levels of the data (256 without
    it) and the prediction type `score`. All that both say must agree.

    Args:
        folder: of a pipeline, or of a network alone.
        flags: the process of a network alone, where no scheduler_config.json lies beside it.

    Raises:
        InputError: no such folder, another kind of pipeline, network or scheduler, a contradiction, or a process that
            neither files nor flags describe.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such checkpoint folder, expected one that holds model_index.json; "
            "train one with `python -m train.run`, or name another"
        )
    index_path = _index(folder)
    if not index_path.exists() and (folder / "state").is_dir():
        raise InputError(
            f"{folder}: holds a training run that is not finished, expected model_index.json; "
            f"finish it with `python -m train.run --out {folder} --resume`"
        )
    # Without model_index.json, UNet2DModel and the scheduler's class each load their own file of the folder.
    scheduler_name = None if _is_no_pipeline(folder) else _scheduler_in(index_path)
    unet_folder = folder if scheduler_name is None else _part(folder, "unet")
    unet_path = unet_folder / UNET_CONFIG
    unet_config = effective_fields(_read_json(unet_path), str(unet_path))
    # Beside model_index.json, which names the class, diffusers does without it.
    unet_name = unet_config.get("_class_name", None if scheduler_name is None else "UNet2DModel")
    if unet_name != "UNet2DModel":
        raise InputError(f"{unet_path}: _class_name is {shown(unet_name)}, expected UNet2DModel; {_ANOTHER}")
    if holds_network_alone(folder):
        process = _process_of_flags(folder, unet_path, unet_config, flags or ProcessFlags())
        origins = {name: f"--{flag}" for name, flag in _FLAGS.items()}
    else:
        process, origins = _process_of_files(folder, scheduler_name, unet_path, unet_config)
    _check_network(unet_path, unet_config, process)
    return CheckpointFolder(process, unet_config, unet_folder, origins)


def _is_no_pipeline(folder: Path) -> bool:
    return not _index(folder).exists() and (folder / UNET_CONFIG).is_file()


def _index(folder: Path) -> Path:
    return checkpoint_files(folder).current(MODEL_INDEX)


def _scheduler_in(index_path: Path) -> str:
    """The scheduler's class by model_index.json. Raises InputError for a pipeline of another kind."""
    index = _read_json(index_path)
    parts = {name: part for name, part in index.items() if not name.startswith("_") and part != [None, None]}
    reason = next((f" ({what})" for name, what in _OTHER_PARTS.items() if isinstance(parts.get(name), list)), "")
    if index.get("_class_name") not in _PIPELINES:
        raise InputError(
            f"{index_path}: _class_name is {shown(index.get('_class_name'))}{reason}, expected "
            f"{' or '.join(_PIPELINES)}; {_ANOTHER}"
        )
    others = sorted(name for name in parts.keys() - {"unet", "scheduler"} if isinstance(parts[name], list))
    if others:
        raise InputError(f"{index_path}: names {others[0]}{reason}, expected unet and scheduler alone; {_ANOTHER}")
    if index.get("unet") != ["diffusers", "UNet2DModel"]:
        raise InputError(
            f"{index_path}: unet is {shown(index.get('unet'))}, expected ['diffusers', 'UNet2DModel']; {_ANOTHER}"
        )
    scheduler = index.get("scheduler")
    if not isinstance(scheduler, list) or len(scheduler) != 2 or scheduler[0] != "diffusers":
        raise InputError(
            f"{index_path}: scheduler is {shown(scheduler)}, expected ['diffusers', 'DDPMScheduler'] or another one of "
            f"diffusers; {_ANOTHER}"
        )
    scheduler_class({"_class_name": scheduler[1]}, str(index_path))
    return str(scheduler[1])


def _part(folder: Path, name: str) -> Path:
    """Where diffusers looks for a part of a pipeline: its sub-folder, or the root where there is none."""
    part = checkpoint_files(folder).current(name)
    return part if part.is_dir() else folder


def _process_of_files(
    folder: Path, scheduler_name: str | None, unet_path: Path, unet_config: Mapping[str, Any]
) -> tuple[Process, dict[str, str]]:
    path = (folder if scheduler_name is None else _part(folder, "scheduler")) / SCHEDULER_CONFIG
    # diffusers writes -Infinity for the lambda_min_clipped of its DPM-Solvers.
    config = effective_fields(_read_json(path, with_infinity=True), str(path))
    if scheduler_name is None and "_class_name" not in config:
        raise InputError(f"{path}: _class_name is missing, expected that of a scheduler; {_ANOTHER}")
    if "_class_name" in config:  # the class that wrote it may be of another process
        scheduler_class(config, str(path))
    if scheduler_name is not None:
        config["_class_name"] = scheduler_name  # as diffusers takes it
    process = process_from_diffusers(config, unet_config, source=str(path), unet_source=str(unet_path))
    process = replace(process, conditions=_label(unet_path, unet_config))
    record = TrainRecord.read(folder)
    if record is None:
        return process, _origins(config, scheduler_class(config, str(path)))
    if not record.has_digest:
        say(
            f"note: {folder / TRAIN_JSON}: has no digest, as an earlier version wrote it: a changed byte is not noticed"
        )
    if record.config_sha256 not in (None, hashlib.sha256(unet_path.read_bytes()).hexdigest()):
        raise InputError(
            f"{unet_path}: was changed: {TRAIN_JSON} was written for the SHA-256 {record.config_sha256}; put that file "
            f"back, or remove {TRAIN_JSON} if the change is meant: diffusers' files then say what it was trained to do"
        )
    process = _checked_process(folder / TRAIN_JSON, record.process, process, config)
    return process, dict.fromkeys(_FLAGS, TRAIN_JSON)


def _origins(config: Mapping[str, Any], found: SchedulerClass) -> dict[str, str]:
    name = config.get("_class_name", DEFAULT_SCHEDULER)
    default = f"default of {name}"
    clip = f"{name} never clips" if found.clips is None else default
    return {
        "prediction_type": SCHEDULER_CONFIG if "prediction_type" in config else default,
        "schedule": SCHEDULER_CONFIG if config.keys() & {"beta_schedule", "trained_betas"} else default,
        "variance_type": SCHEDULER_CONFIG if config.get("variance_type") else f"default of {DEFAULT_SCHEDULER}",
        "clip_sample": SCHEDULER_CONFIG if "clip_sample" in config else clip,
    }


def _process_of_flags(folder: Path, unet_path: Path, config: Mapping[str, Any], flags: ProcessFlags) -> Process:
    if flags == ProcessFlags() and (folder.parent / MODEL_INDEX).exists():
        raise InputError(f"{folder}: holds the network alone; name its pipeline's folder {folder.parent}")
    if flags.output_name is not None:
        raise InputError(f"{folder}: `output_name` is for an ONNX file; leave it out")
    check_unet_fields(config, str(unet_path))
    given = {name: getattr(flags, name) for name in ("channels", "height", "width")}
    if config.get("sample_size") is None and None not in (flags.height, flags.width):
        config = {**config, "sample_size": [flags.height, flags.width]}
    sample = shape_from_diffusers(config, str(unet_path))
    for name, flag in given.items():
        if flag not in (None, getattr(sample, name)):
            raise InputError(
                f"{unet_path}: `{name}` is {flag}, but the network was made for {getattr(sample, name)}; leave it out"
            )
    process = flags.process(sample, str(folder), f"no {SCHEDULER_CONFIG}", f"copy {SCHEDULER_CONFIG} into it")
    check_prediction_channels(config, process, str(unet_path))
    return replace(process, conditions=_label(unet_path, config))


def _label(path: Path, config: Mapping[str, Any]) -> tuple[Condition, ...]:
    """The class label of the network, if it has one; no file of diffusers says whether one is the null class.

    Raises:
        InputError: something else in the label's place.
    """
    if config.get("class_embed_type") is not None:
        raise InputError(
            f"{path}: class_embed_type is {shown(config['class_embed_type'])}, expected null: a class label is a whole "
            f"number; {_ANOTHER}"
        )
    num = config.get("num_class_embeds")
    if num is None:
        return ()
    return (Condition("y", INT64, classes=_num_classes(path, num)),)


def _num_classes(path: Path, num: object) -> int:
    try:
        return whole_number(num, "num_class_embeds", 1, MAX_CLASSES)
    except InputError as error:
        raise in_file(str(path), error, "correct the file") from None


def _num_labels(process: Process) -> int | None:
    return None if process.label is None else process.label.num_labels


def _read_json(path: Path, with_infinity: bool = False) -> dict[str, Any]:
    return read_json_object(
        path,
        "copy or train the checkpoint again",
        "expected a folder that `python -m train.run` or diffusers' DDPMPipeline.save_pretrained wrote; "
        "choose or copy the whole folder",
        with_infinity,
    )


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
