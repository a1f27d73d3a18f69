"""lucidrains' denoising-diffusion-pytorch from version 2.0 on: its Trainer's model-N.pt, or a GaussianDiffusion's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion.errors import InputError
from diffusion.noise_schedule import MAX_TRAIN_TIMESTEPS, NoiseSchedule
from diffusion.process import Process, SampleShape
from export.checkpoints.flags import EMA, IMAGE_SIZE, CheckpointFlag, GivenFlags
from export.checkpoints.formats import Format

if TYPE_CHECKING:
    import torch

    from export.checkpoints.checkpoint import ForeignCheckpoint
    from export.checkpoints.lucidrains_unet import AttentionShape, LucidrainsShape
    from export.checkpoints.state_file import StateFile

_NAME = "denoising-diffusion-pytorch (lucidrains)"
_PREDICTIONS = {"pred_noise": "epsilon", "pred_x0": "sample", "pred_v": "v_prediction"}
_THETA = "sinusoidal_pos_emb_theta"
_FLAGS = (
    IMAGE_SIZE,
    EMA,
    CheckpointFlag("objective", str, "where loss_weight does not tell it", tuple(_PREDICTIONS)),
    CheckpointFlag(_THETA, float, "of the Unet (default 10000)"),
    CheckpointFlag("auto_normalize", bool, "of the GaussianDiffusion (default True): images were trained in -1..1"),
)
_MARKS = ("init_conv.weight", "time_mlp.1.weight", "mid_block1.mlp.1.weight")
_NETWORK = "model."
_AGAIN = "give the model-N.pt that the project's Trainer saved"


def _recognizes(state: StateFile) -> bool:
    tables = (state.table("model"), state.table("ema"), state.table())
    return any(all(any(name.endswith(mark) for name in table) for mark in _MARKS) for table in tables if table)


def _read(state: StateFile, flags: GivenFlags) -> ForeignCheckpoint:
    import torch

    from export.checkpoints.checkpoint import ForeignCheckpoint
    from export.checkpoints.lucidrains_unet import LucidrainsUnet
    from export.checkpoints.tensors import checked_tensors

    path = state.path
    diffusion = state.table("model") or state.table() or {}
    _check_kind(state, diffusion)
    tensors, what = _network_tensors(state, diffusion, bool(flags.get("ema", True)))
    _check_version(state, tensors)
    shape = _shape(state, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    theta = float(flags.get(_THETA, 10_000.0))
    if not 1.0 < theta < float("inf"):
        raise InputError(f"{path}: {_THETA} is {theta:g}, expected a number above 1")
    with torch.device("meta"):
        network = LucidrainsUnet(shape, theta)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    weights = checked_tensors(path, tensors, expected, "the file is damaged, or of a version that is not known")
    network.load_state_dict(weights, assign=True)
    process, origins = _process(state, diffusion, shape, flags)
    return ForeignCheckpoint(
        path,
        _NAME,
        process,
        network.eval().requires_grad_(False),
        origins,
        not_expressible="its blocks and its attention are normalized by their RMS, which UNet2DModel does not do",
        notes=(f"{path}: reading {what}",),
    )


def _check_kind(state: StateFile, diffusion: Mapping[str, torch.Tensor]) -> None:
    """Raises InputError for what the project trains besides GaussianDiffusion with a Unet over images."""
    path, names = state.path, set(diffusion)
    if any(name.startswith("net.") for name in names):
        raise InputError(
            f"{path}: is an ElucidatedDiffusion, whose network is conditioned on σ, expected a GaussianDiffusion, "
            "conditioned on timesteps 0..T−1; choose another checkpoint"
        )
    if any(name.endswith("time_mlp.0.weights") for name in names) or (
        "betas" not in names and any(name.startswith("log_snr") for name in names)
    ):
        raise InputError(
            f"{path}: was trained in continuous time: its network is conditioned on log-SNR, expected a "
            "GaussianDiffusion, conditioned on timesteps 0..T−1; choose another checkpoint"
        )
    if not {"betas", "alphas_cumprod", "loss_weight", "model.init_conv.weight"} <= names:
        raise InputError(
            f"{path}: holds a network without betas and loss_weight, which say how it was trained; {_AGAIN}"
        )
    if diffusion["model.init_conv.weight"].ndim != 4:
        raise InputError(f"{path}: is a network over sequences or volumes, expected one over images; choose another")


def _network_tensors(
    state: StateFile, diffusion: Mapping[str, torch.Tensor], average: bool
) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors of the network by the names of its parts, and what they are."""
    ema = state.table("ema")
    if average and ema is not None:
        # EMA's own `initted` is false until it has averaged anything: then it holds the weights of the first steps.
        if "initted" in ema and not bool(ema["initted"].all()):
            raise InputError(
                f"{state.path}: its moving average is not begun yet, expected one of trained weights; choose a later "
                "checkpoint, or give --ema False"
            )
        prefix = f"ema_model.{_NETWORK}"
        tensors = {name.removeprefix(prefix): each for name, each in ema.items() if name.startswith(prefix)}
        if tensors:
            return tensors, "the moving average (ema)"
        raise InputError(f"{state.path}: ema holds no {prefix}*; give --ema False to take the network itself")
    tensors = {name.removeprefix(_NETWORK): each for name, each in diffusion.items() if name.startswith(_NETWORK)}
    return tensors, "the network itself (model)" if state.table("model") else "the only network"


def _check_version(state: StateFile, tensors: Mapping[str, torch.Tensor]) -> None:
    if "mid_block1.block1.norm.g" not in tensors or "mid_attn.mem_kv" not in tensors:
        raise InputError(
            f"{state.path}: is of a version before 2.0, whose blocks are normalized otherwise, expected 2.0 or later; "
            "export its network to ONNX where that version is installed"
        )


def _shape(state: StateFile, shapes: Mapping[str, tuple[int, ...]]) -> LucidrainsShape:
    from export.checkpoints.lucidrains_unet import LucidrainsShape

    path = state.path

    def axes(name: str, num: int) -> tuple[int, ...]:
        found = shapes.get(name, ())
        if len(found) != num or min(found) < 1:
            raise InputError(
                f"{path}: {name} has shape {list(found)}, expected {num} axes; the file is damaged, or of a version "
                "that is not known"
            )
        return found

    def attention(name: str) -> AttentionShape:
        from export.checkpoints.lucidrains_unet import AttentionShape

        full = f"{name}.to_out.weight" in shapes
        _, heads, *rest = axes(f"{name}.mem_kv", 4)
        width, memories = reversed(rest) if full else rest
        return AttentionShape(full, heads, width, memories)

    num_levels = len({match[1] for name in shapes if (match := re.match(r"downs\.(\d+)\.", name))})
    width, in_channels, *_ = axes("init_conv.weight", 4)
    out_channels = axes("final_conv.weight", 4)[0]
    time_width = axes("time_mlp.1.weight", 2)[1]
    if in_channels == 2 * out_channels:
        raise InputError(
            f"{path}: takes {in_channels} channels for images of {out_channels}: it is self-conditioned, its second "
            "input is the x_start of the step before, which our chains do not keep; choose one without self_condition"
        )
    if out_channels not in (in_channels, 2 * in_channels):
        raise InputError(
            f"{path}: has {in_channels} input and {out_channels} output channels, expected as many, or twice as many "
            "with learned_variance; choose a checkpoint of GaussianDiffusion or LearnedGaussianDiffusion"
        )
    if time_width < 4 or time_width % 2:
        raise InputError(f"{path}: its sinusoids are {time_width} wide, expected an even number of at least 4")
    widths = [width]
    for level in range(num_levels):
        last = level == num_levels - 1
        widths.append(axes(f"downs.{level}.3.weight" if last else f"downs.{level}.3.1.weight", 4)[0])
    return LucidrainsShape(
        in_channels,
        out_channels,
        time_width,
        tuple(widths),
        tuple(attention(f"downs.{level}.2") for level in range(num_levels)),
        attention("mid_attn"),
    )


def _process(
    state: StateFile, diffusion: Mapping[str, torch.Tensor], shape: LucidrainsShape, flags: GivenFlags
) -> tuple[Process, dict[str, str]]:
    path = state.path
    flags.require(path, "image_size")
    size, factor = flags.get("image_size"), 2 ** (len(shape.widths) - 2)
    if size < 1 or size % factor:
        raise InputError(
            f"{path}: image_size is {size}, expected a multiple of {factor}, as the network halves it; correct "
            "--image_size"
        )
    if not flags.get("auto_normalize", True):
        raise InputError(
            f"{path}: auto_normalize is False: its images lie in 0..1, expected −1..1, which ours are; train with "
            "auto_normalize"
        )
    learned = shape.out_channels == 2 * shape.in_channels
    # Of `model`: EMA averages buffers too, and what it makes of them is no schedule.
    try:
        schedule = _schedule(_numbers(diffusion, "betas"), _numbers(diffusion, "alphas_cumprod"))
        # LearnedGaussianDiffusion takes the prediction for the noise whatever its objective is.
        objective = "pred_noise" if learned else _objective(_numbers(diffusion, "loss_weight"), schedule, flags)
        process = Process(
            SampleShape(shape.in_channels, size, size),
            schedule,
            _PREDICTIONS[objective],
            "learned_range" if learned else "fixed_small",
            1.0,
            state.sha256,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    the_only_one = "the only one of the project"
    return process, {
        "prediction_type": "learned_variance" if learned else "loss_weight",
        "schedule": "betas",
        "variance_type": "channels of final_conv" if learned else the_only_one,
        "clip_sample": the_only_one,
    }


def _numbers(diffusion: Mapping[str, torch.Tensor], name: str) -> np.ndarray:
    """A buffer in float64. Raises InputError unless it holds at most as many numbers as there may be timesteps."""
    found = diffusion[name]
    is_dense = str(found.layout) == "torch.strided" and found.device.type == "cpu" and found.dtype.is_floating_point
    if not is_dense or found.numel() > MAX_TRAIN_TIMESTEPS:
        raise InputError(
            f"{name} is {found.dtype} {list(found.shape)} ({found.layout}, {found.device}), expected a floating-point "
            f"number for each of at most {MAX_TRAIN_TIMESTEPS} timesteps; the file is damaged"
        )
    return np.asarray(found.detach().double().numpy())


def _schedule(betas: np.ndarray, alpha_bar: np.ndarray) -> NoiseSchedule:
    """The schedule of the buffers, by its name where it has one: they are rounded to float32."""
    if betas.ndim != 1 or betas.shape != alpha_bar.shape or not len(betas):
        raise InputError(
            f"betas has shape {list(betas.shape)} and alphas_cumprod {list(alpha_bar.shape)}, expected one number for "
            "each timestep; the file is damaged"
        )
    schedule, total = NoiseSchedule.explicit(betas), len(betas)
    if not np.allclose(schedule.alpha_bar, alpha_bar, rtol=1e-3, atol=1e-6):
        worst = int(np.argmax(np.abs(schedule.alpha_bar - alpha_bar)))
        raise InputError(
            f"alphas_cumprod[{worst}] is {alpha_bar[worst]:.6g}, but the betas give {schedule.alpha_bar[worst]:.6g}; "
            "the file is damaged"
        )
    named: list[tuple[str, Any]] = [("squaredcos_cap_v2", ())]
    if total > 20:
        named.append(("linear", (0.1 / total, 20.0 / total)))
    for kind, ends in named:
        exact = NoiseSchedule.make(kind, total, *ends)
        if np.array_equal(exact.betas.astype(np.float32), betas.astype(np.float32)):
            return exact
    return schedule


def _objective(loss_weight: np.ndarray, schedule: NoiseSchedule, flags: GivenFlags) -> str:
    """What the network predicts, by the weight of its loss (Hang et al. 2023): min(SNR, γ), over what each one has."""
    snr = schedule.snr
    if loss_weight.shape != snr.shape:
        raise InputError(f"loss_weight has shape {list(loss_weight.shape)}, expected {list(snr.shape)}")
    fits = []
    for objective, divisor in (("pred_noise", snr), ("pred_x0", np.ones_like(snr)), ("pred_v", snr + 1.0)):
        clipped = loss_weight * divisor
        if np.allclose(clipped, np.minimum(snr, clipped.max()), rtol=2e-2, atol=0.0):
            fits.append(objective)
    given = flags.get("objective")
    if given is not None and (given in fits or not fits):
        return str(given)
    if len(fits) == 1 and given is None:
        return fits[0]
    found = f"is of {' or '.join(fits)}" if fits else "is of no objective that is known"
    raise InputError(f"loss_weight {found}; {'give' if given is None else 'correct'} --objective")


LUCIDRAINS = Format(_NAME, _recognizes, _read, _FLAGS)
