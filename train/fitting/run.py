"""A whole fit: network, objective, start, steps, figures, file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from commands.errors import DeviceUnavailableError, VerificationError
from commands.locks import sole_writer
from commands.program import Report, say
from commands.progress import progress_bar
from commands.system import check_memory
from diffusion.conditioning import MAX_ROUNDING_ERROR, ROUNDING, rounding_error
from diffusion.errors import InputError
from diffusion.step_table import StepTable
from runtime.engines.torch_checkpoint import load_checkpoint
from runtime.formats.table_file import WITHOUT_DIGEST, FittedRecord, TableFile
from train.datasets import DataRequest
from train.fitting.data import data_to_fit
from train.fitting.energy import EnergyDistance
from train.fitting.figures import held_out_figures, precision_figures
from train.fitting.fit import Fit, FitConfig, SavedFit, run_fit, saved_start
from train.fitting.network import FittedNetwork
from train.fitting.start import best_start, candidates, num_judged
from train.fitting.teacher import NAME as TEACHER
from train.fitting.teacher import TeacherDistance
from train.image_set import ImageSet

_MAX_IMAGES = 10_000


@dataclass(frozen=True)
class FitRequest:
    """What to fit, and where to.

    Attributes:
        checkpoint: a folder that diffusers loads.
        num_steps: network calls.
        objective: `data` or `teacher`.
        out: the table's file.
        seed: of all draws.
        sampler, spacing: of the start; None for all.
        config: of the fit.
        features: of the objective `data`, one of `train.fitting.energy.FEATURES`.
        num_pairs, ball: of the objective `teacher`, see `TeacherDistance`.
        guidance: scale; None for 1.
        data: with an empty name for what the checkpoint was trained on.
        device: `cpu` or `cuda`.
        threads: of the CPU; 0 for all.
        allow_pickle: read a checkpoint whose weights are a pickle.
        resume: go on with what was saved beside `out`, if anything was.
    """

    checkpoint: Path
    num_steps: int
    objective: str
    out: Path
    seed: int
    sampler: str | None
    spacing: str | None
    config: FitConfig
    features: str
    num_pairs: int
    ball: float
    guidance: float | None
    data: DataRequest
    device: str
    threads: int
    allow_pickle: bool
    resume: bool


def fit_table(request: FitRequest, must_move_timesteps: bool = False) -> Report:
    """Fit a table and write it.

    Args:
        request: what to fit.
        must_move_timesteps: refuse a network whose timesteps must be whole, instead of keeping them.

    Raises:
        InputError: a checkpoint, data or settings that cannot be used.
        DeviceUnavailableError: no such device.
        VerificationError: the fitted table is no better than its start; nothing was written.
        StoppedError: stopped by a signal; the state is saved.
    """
    if request.device == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailableError("device cuda: torch finds no CUDA GPU here; use the CPU")
    if request.threads:
        torch.set_num_threads(request.threads)
    device = torch.device(request.device)
    checkpoint = load_checkpoint(request.checkpoint, request.allow_pickle)
    takes_any = checkpoint.unet.config.time_embedding_type != "learned"
    if not takes_any and request.config.free_timesteps:
        message = (
            f"{request.checkpoint}: the network takes whole timesteps alone, so they are kept as the start has them"
        )
        if must_move_timesteps:
            raise InputError(f"{message}; fit with fixed timesteps")
        say(f"note: {message}")
        request = replace(request, config=replace(request.config, free_timesteps=False))
    images, held_out = None, None
    if request.objective == "data":
        images, held_out = data_to_fit(request.checkpoint, request.data, checkpoint.process)
    labels = None if images is None or images.labels is None else images.labels.of_image
    network = FittedNetwork.of(checkpoint, device, request.seed, labels, request.guidance)
    element = 4 * checkpoint.process.sample.num_elements
    check_memory(
        f"batch size {request.config.batch_size}", 16 * element * request.config.batch_size, "give a smaller one"
    )
    if request.objective == "teacher":
        check_memory(f"pairs {request.num_pairs}", 8 * element * request.num_pairs, "give fewer")
    settings = _settings(request, images, network)
    identity = {"checkpoint": checkpoint.sha256, "seed": request.seed, "calls": request.num_steps, **settings}
    saved = SavedFit(request.out.with_name(f"{request.out.name}.state"), identity)
    with sole_writer(request.out):
        state = saved.read() if request.resume else None
        if state is None and request.resume and _is_done(request, checkpoint.sha256, settings):
            return _report(request.out, TableFile.read(request.out), "already fitted")
        if state is None and saved.path.exists():
            say(f"{saved.path}: an unfinished fit is started over; --resume goes on with it")
        objective = _objective(request, network, images, held_out)
        start, name = _start(request, network, objective) if state is None else saved_start(state)
        say(f"fitting {request.num_steps} calls of {request.checkpoint} to {_goal(request)}, beginning with {name}")
        fit = Fit(network, objective, start, request.config)
        run_fit(fit, start, name, saved, state)
        fitted = replace(fit.table(f"fitted_{request.num_steps}"), checkpoint_sha256=checkpoint.sha256)
        try:
            file = _judged(request, network, objective, start, fitted, name, settings)
        except VerificationError:
            saved.remove()
            raise
        file.write(request.out)
        saved.remove()
    return _report(request.out, file, "fitted")


def _judged(
    request: FitRequest,
    network: FittedNetwork,
    objective: EnergyDistance | TeacherDistance,
    start: StepTable,
    fitted: StepTable,
    start_name: str,
    settings: dict[str, Any],
) -> TableFile:
    """The table with its figures. Raises VerificationError if it is no better than its start."""
    held_out = held_out_figures(network, objective, start, fitted)
    measure, values = next(iter(held_out.items()))
    before, after = values["start"], values["fitted"]
    if after is None or (request.config.iterations and before is not None and not after < before):
        raise VerificationError(
            f"the fitted table is no better than {start_name}: {measure} {_shown(after)} against {_shown(before)} on "
            "held-out noise; nothing was written; fit longer, or with larger batches"
        )
    error = precision_figures(network, start, fitted)
    record = FittedRecord(request.objective, request.seed, start_name, settings, held_out, error)
    return TableFile(fitted, record, sealed=True)


def _objective(
    request: FitRequest, network: FittedNetwork, images: ImageSet | None, held_out: ImageSet | None
) -> EnergyDistance | TeacherDistance:
    if images is None:
        return TeacherDistance(network, request.num_pairs, request.ball)
    num = sum(min(part.num_images, _MAX_IMAGES) for part in (images, held_out) if part is not None)
    element = 4 * network.process.sample.num_elements
    check_memory(f"{images.name}: {num:,} images", 3 * element * num, "fit on a machine with more, or to the teacher")
    chosen = _some(images, request.seed)
    labels = None if images.labels is None else images.labels.of_image[chosen]
    x_start = torch.from_numpy(images.x_start(chosen)).to(network.device)
    others = None if held_out is None else torch.from_numpy(held_out.x_start(_some(held_out, request.seed)))
    return EnergyDistance(
        x_start, None if others is None else others.to(network.device), labels, request.features, request.seed
    )


def _some(images: ImageSet, seed: int) -> np.ndarray:
    """Places of at most `_MAX_IMAGES`; not the first ones, since data is often in the order of its classes."""
    return np.sort(np.random.default_rng(seed).permutation(images.num_images)[:_MAX_IMAGES])


def _start(
    request: FitRequest, network: FittedNetwork, objective: EnergyDistance | TeacherDistance
) -> tuple[StepTable, str]:
    choices = candidates(network, request.num_steps, request.sampler, request.spacing)
    with progress_bar(num_judged(choices), "search a start", "table", lines_in_a_log=True) as bar, torch.no_grad():
        best, _ = best_start(
            network,
            choices,
            lambda x_0, indices: next(iter(objective.figures(x_0, indices).values())),
            bar.update,
        )
    return best.table, best.name


def _settings(request: FitRequest, images: ImageSet | None, network: FittedNetwork) -> dict[str, Any]:
    """What determines the numbers beside checkpoint, seed and calls, as JSON has it."""
    found: dict[str, Any] = {
        "objective": request.objective,
        "sampler": request.sampler,
        "spacing": request.spacing,
        **dataclasses.asdict(request.config),
    }
    if network.guidance is not None:
        found["guidance"] = network.guidance
    if images is None:
        return found | {"teacher": TEACHER, "pairs": request.num_pairs, "ball": request.ball}
    return found | {"data": images.name, "data_sha256": images.fingerprint, "features": request.features}


def _is_done(request: FitRequest, checkpoint_sha256: str, settings: dict[str, Any]) -> bool:
    """Whether the file is what would be fitted. Raises InputError if that cannot be known, as of one without digest."""
    if not request.out.exists():
        return False
    file = TableFile.read(request.out)
    is_this = (
        file.fitted is not None
        and (file.table.checkpoint_sha256, file.fitted.seed) == (checkpoint_sha256, request.seed)
        and len(file.table) == request.num_steps
        and dict(file.fitted.settings) == settings
    )
    if is_this and not file.sealed:
        raise InputError(f"{request.out}: {WITHOUT_DIGEST}; remove it, or choose another name")
    return is_this


def _goal(request: FitRequest) -> str:
    return f"the teacher ({TEACHER})" if request.objective == "teacher" else "the data"


def _shown(figure: float | None) -> str:
    return "not finite" if figure is None else f"{figure:.4g}"


def _report(out: Path, file: TableFile, done: str) -> Report:
    assert file.fitted is not None
    runs_in = [name for name in ROUNDING if rounding_error(file.table, name) <= MAX_ROUNDING_ERROR]
    lines = [f"{done}: {len(file.table)} calls from {file.fitted.start}, timesteps {file.table.timesteps.tolist()}"]
    for title, figures in (("held-out noise", file.fitted.held_out), ("x_0 error in", file.fitted.x_start_error)):
        for name, of in figures.items():
            lines.append(f"{title}, {name}: {_shown(of['fitted'])} (its start {_shown(of['start'])})")
    lines += [f"conditioning {file.table.conditioning:.3g}; runs in {', '.join(runs_in)}", str(out)]
    return {
        "summary": "\n".join(lines),
        "out": str(out),
        "timesteps": file.table.timesteps.tolist(),
        "conditioning": file.table.conditioning,
        "runs_in": runs_in,
        "checkpoint_sha256": file.table.checkpoint_sha256,
        **file.fitted.to_json(),
    }
