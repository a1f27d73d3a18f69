"""A whole run: data, loop, samples, publication."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from commands.errors import DeviceUnavailableError, StoppedError
from commands.program import Report, say
from commands.progress import progress_bar
from commands.system import check_memory
from diffusion.errors import InputError
from diffusion.process import Process
from runtime.formats.train_record import SAMPLES
from runtime.images import draw_grid, quantize
from train.batches import Batches, Draws
from train.datasets import DataRequest, load_data
from train.evaluation import HeldOutLoss, grid_labels, sample
from train.image_set import ImageSet, fewer_levels
from train.learner import Ema, Learner
from train.loop import StopRequest, TrainingLoop
from train.network import check_shape, make_network
from train.objective import Objective
from train.presets import LoggingConfig, TrainingConfig
from train.publication import publish
from train.run_folder import RunFolder
from train.schedule_learner import ScheduleLearner


@dataclass(frozen=True)
class Run:
    """What to train, on what, and where to.

    Attributes:
        preset: the name `config` came from.
        config, data: what determines the weights.
        logging_config: how often to log, evaluate and save.
        out: the folder to write.
        num_samples: images in the grid; 0 for no grid.
        device: `auto`, `cpu` or `cuda`.
        resume, overwrite: what to do with a run that is there.
        command, resume_command: for `train.json`, and to say how to resume.
    """

    preset: str
    config: TrainingConfig
    data: DataRequest
    logging_config: LoggingConfig
    out: Path
    num_samples: int
    device: str
    resume: bool
    overwrite: bool
    command: str
    resume_command: str


def train(run: Run) -> Report | None:
    """Train, sample and publish. Every process calls this; only the main one writes and gets the report.

    Raises:
        InputError: data, folder or configuration cannot be used, or the loss is not finite.
        DeviceUnavailableError: the device or precision is not available.
        StoppedError: stopped by a signal; the state is saved.
    """
    config = run.config
    accelerator = _make_accelerator(run.device, config.mixed_precision)
    try:
        with contextlib.ExitStack() as stack:
            return _train(run, accelerator, stack)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _train(run: Run, accelerator: Accelerator, stack: contextlib.ExitStack) -> Report | None:
    config = run.config
    with accelerator.main_process_first():  # one process downloads, the others find it done
        images, held_out = load_data(run.data)
    check_shape(config.network, images.shape, run.preset)
    # Before hours of training: the batch's three arrays and the network's input, and the grid at the end.
    rows = 4 * 4 * images.shape.num_elements
    batch = f"--batch-size {config.batch_size} of {images.shape.height}×{images.shape.width} pixels"
    check_memory(batch, rows * config.batch_size, "give a smaller one, or smaller images")
    check_memory(f"--num-samples {run.num_samples}: the grid", rows * run.num_samples, "give fewer")
    notes = [*images.notes, *_notes_of_levels(images, run.data)]
    given_process = config.process(images.shape)
    labels = images.labels
    if labels is not None:
        given_process = dataclasses.replace(given_process, conditions=(labels.condition(config.drop_class > 0.0),))
    schedule_learner = None
    if config.learn_schedule:
        schedule_learner = ScheduleLearner(accelerator, given_process.schedule, config.steps)
    batches = Batches(
        images,
        config.batch_size,
        config.num_train_timesteps,
        config.seed,
        config.flips,
        accelerator.num_processes,
        accelerator.process_index,
        config.drop_class,
    )
    data = {**dataclasses.asdict(run.data), "fingerprint": images.fingerprint}
    if labels is None:  # as it was written before there were classes
        del data["classes"], data["class_column"]
    else:
        data["classes"] = labels.fingerprint
    record = {"preset": run.preset, "data": data, **dataclasses.asdict(config)}
    # The record of an earlier version lacks the fields that were added later.
    defaults = {field.name: field.default for field in dataclasses.fields(config) if field.default is not MISSING}
    folder = RunFolder(run.out, record, defaults)
    if accelerator.is_main_process:
        stack.enter_context(folder.claimed())
    accelerator.wait_for_everyone()  # the main process may have ended what a killed one began
    status = folder.inspect(run.resume, run.overwrite)
    accelerator.wait_for_everyone()  # all have looked before one writes
    if status.complete:
        return _report(run, folder.published(), "already complete") if accelerator.is_main_process else None

    torch.manual_seed(Draws(config.seed).torch_seed(-1, 0))  # the same weights in every process
    network = make_network(config.network, given_process)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    objective = Objective(given_process, config.loss, config.min_snr_gamma, accelerator.device)
    learner = Learner(accelerator, network, config, objective, schedule_learner)
    if status.state is not None:
        learner.load_state(status.state)
    evaluate = None
    if held_out is not None:
        # Without gradients a network takes a fraction of the memory, so larger batches fit.
        batch_size = 4 * -(-batches.num_rows // config.accumulate)
        evaluate = HeldOutLoss(held_out, objective, config.num_train_timesteps, batch_size, accelerator.device)
    if accelerator.is_main_process:
        folder.begin(status)
        for note in notes:
            say(f"{images.name}: {note}")
        start = "" if status.state is None else f"from step {status.state['step']:,}, "
        say(
            f"training on {images.name}: {images.num_images:,} images of "
            f"{images.shape.channels}×{images.shape.height}×{images.shape.width}"
            f"{'' if labels is None else f' in {len(labels.names)} classes'}, {num_parameters:,} parameters, "
            f"{start}{config.steps:,} steps of {config.batch_size} images on {accelerator.device.type}"
            + (f", {accelerator.num_processes} processes" if accelerator.num_processes > 1 else "")
            + (", flipped left to right at random (--no-flip leaves that out)" if config.flips else "")
        )
    with StopRequest() as stop:
        loop = TrainingLoop(
            accelerator, config, learner, batches, evaluate, folder, run.logging_config, stop, run.resume_command
        )
        final = loop.run(status.state, f"train {run.preset}")
        if learner.ema is None:
            return None
        process = objective.process  # with the schedule that was learned, if one was
        num_classes = None if labels is None else len(labels.names)
        grid = _make_grid(run, learner.ema, process, accelerator.device, stop, num_classes)
    facts: dict[str, Any] = {
        "preset": run.preset,
        "command": run.command,
        "config": folder.record,
        "num_images": images.num_images,
        "num_held_out": held_out.num_images if held_out is not None else 0,
        "num_parameters": num_parameters,
        "device": accelerator.device.type,
        "seconds": round(final["seconds"], 3),
        "final_loss": final["loss"],
        "held_out_loss": final.get("held_out_loss"),
    }
    if labels is not None:
        facts["classes"] = list(labels.names)
    if schedule_learner is not None:
        facts["bound_relative_std"] = schedule_learner.relative_std()
    weights = learner.ema.network.state_dict()
    publish(run.out, weights, config.network, process, facts, folder.running_metrics, grid)
    folder.mark_published()
    return _report(run, folder.published(), "trained")


def _notes_of_levels(images: ImageSet, request: DataRequest) -> list[str]:
    """Remarks on the data's gray levels. Raises InputError for images that are nearly black."""
    fewer = fewer_levels(images) if request.levels is None else None
    if fewer is None:
        return []
    levels, nearly_black = fewer
    if nearly_black:
        raise InputError(
            f"{images.name}: no pixel is above {levels - 1} of 255, so all images are nearly black; if these are gray "
            f"levels 0 to {levels - 1}, give --levels {levels}, and if they are meant so, --levels 256"
        )
    return [f"the pixels take {levels} evenly spaced values only; --levels {levels} makes a likelihood one of so many"]


def _make_accelerator(device: str, mixed_precision: str) -> Accelerator:
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailableError("--device cuda: torch finds no CUDA GPU here; use --device cpu")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if on_cpu and mixed_precision == "fp16":
        raise DeviceUnavailableError("--mixed-precision fp16 needs a CUDA GPU and none is used; take bf16 or no")
    return Accelerator(cpu=on_cpu, mixed_precision=mixed_precision)


def _make_grid(
    run: Run, ema: Ema, process: Process, device: torch.device, stop: StopRequest, num_classes: int | None
) -> Any | None:
    if not run.num_samples:
        return None
    num, labels, columns = run.num_samples, None, None
    if num_classes is not None:
        labels, columns = grid_labels(num_classes, num)
        num = len(labels)
    batch_size = min(num, 128)
    num_calls = process.schedule.num_train_timesteps * -(-num // batch_size)
    with progress_bar(num_calls, "samples", unit="step", lines_in_a_log=True) as bar:

        def on_step() -> None:
            bar.update()
            if stop.requested:
                raise StoppedError(
                    f"stopped while sampling, the trained state is saved; go on with: {run.resume_command}"
                )

        x = sample(ema.predict, process, num, run.config.seed, device, batch_size, on_step, labels)
    return draw_grid(quantize(x), columns)


def _report(run: Run, described: Mapping[str, Any], what: str) -> Report:
    keys = ("seconds", "final_loss", "held_out_loss", "num_parameters")
    grid = run.out / SAMPLES
    held_out_loss = described.get("held_out_loss")
    summary = f"{run.out}: {what}, {run.config.steps:,} steps in {described['seconds']:.0f} s, "
    summary += f"loss {described['final_loss']:.4f}"
    if held_out_loss is not None:
        summary += f", held-out loss {held_out_loss:.4f}"
    if grid.is_file():
        summary += f"\nsamples: {grid}"
    return {
        "out": str(run.out),
        "already_complete": what != "trained",
        "steps": run.config.steps,
        **{key: described.get(key) for key in keys},
        "checkpoint_sha256": described["process"]["checkpoint_sha256"],
        "samples": str(grid) if grid.is_file() else None,
        "summary": summary,
    }
