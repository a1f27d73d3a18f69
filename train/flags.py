"""Flags of the training commands: data, objective and noise schedule, and those of small networks.

The data flags are also those of every command that measures against data.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from diffusion.errors import InputError, in_file
from diffusion.json_text import read_json
from diffusion.noise_schedule import SCHEDULE_KINDS, SCHEDULES_WITH_ENDS, NoiseSchedule
from diffusion.philox import MAX_SEED
from diffusion.process import PREDICTION_TYPES, VARIANCE_TYPES
from train.datasets import DataRequest
from train.presets import TrainingConfig

_DATA = "digits, mnist, a folder of images, an .npz file, or a Hugging Face data set (name or folder)"


def add_data_flags(parser: argparse.ArgumentParser, default: str, split_default: str) -> None:
    """`--data` and all that goes with it, in a group of their own.

    Args:
        parser: of the command.
        default: what the help says is taken without `--data`.
        split_default: what it says is taken without `--split`.
    """
    data = parser.add_argument_group("data", "pictures are read as docs/pictures.md says")
    data.add_argument("--data", help=f"{_DATA}; default: {default}")
    data.add_argument(
        "--split",
        help="of a Hugging Face data set, with slices such as train[:100], or the sub-folder of that name in a "
        f"folder of images, or all; default: {split_default}",
    )
    data.add_argument("--image-column", metavar="NAME", help="column of a Hugging Face data set; default: the only one")
    data.add_argument("--image-size", type=int, metavar="N", help="scale and crop images to N×N")
    data.add_argument("--image-mode", choices=("L", "RGB"), help="convert images to gray or to color")
    data.add_argument(
        "--levels", type=int, metavar="N", help="gray levels of the data, stored as 0 to N-1 or spread over 0 to 255; "
        "default: 256, of digits 17"
    )  # fmt: skip
    data.add_argument(
        "--held-out", type=int, metavar="N", help="images to hold out for the held-out loss; default: one in twenty, "
        "at most 1000"
    )  # fmt: skip


def data_request(args: argparse.Namespace, data: str, **changes: Any) -> DataRequest:
    """What `add_data_flags` parsed.

    Args:
        args: of the command.
        data: where `--data` is not given.
        changes: fields to set otherwise.

    Raises:
        InputError: a number that is out of range.
    """
    check_at_least(args, image_size=1, held_out=0, levels=2)
    fields: dict[str, Any] = {
        "data": args.data or data,
        "split": args.split,
        "image_column": args.image_column,
        "image_size": args.image_size,
        "image_mode": args.image_mode,
        "levels": args.levels,
        "held_out": args.held_out,
    }
    return DataRequest(**{**fields, **changes})


def add_objective_flags(parser: argparse.ArgumentParser) -> None:
    """The flags, in a group of their own."""
    what = parser.add_argument_group(
        "objective (default: epsilon, simple; the variance and the schedule are the preset's)"
    )
    what.add_argument(
        "--prediction", choices=PREDICTION_TYPES, help="what the network says: the noise, the image, v, or the score "
        "-eps/sqrt(1-alpha_bar). All export and sample alike here; diffusers itself loads but does not sample score"
    )  # fmt: skip
    what.add_argument(
        "--loss", choices=("simple", "min-snr", "vlb"), help="simple: squared error of the prediction (of the noise, "
        "for score). min-snr: min(SNR, gamma) on the error of the image (Hang et al. 2023). vlb: the variational bound "
        "in bits per dimension, for likelihood; noisy, since a few small timesteps hold most of it"
    )  # fmt: skip
    what.add_argument("--min-snr-gamma", type=float, metavar="GAMMA", help="of --loss min-snr; default: 5")
    what.add_argument(
        "--variance", choices=VARIANCE_TYPES, help="of the reverse steps: beta_tilde, beta, or learned between them. "
        "learned_range gives the network twice the channels, and adds 0.001 vlb to simple and min-snr, which trains "
        "the variance alone (Nichol & Dhariwal 2021)"
    )  # fmt: skip
    what.add_argument("--num-train-timesteps", type=int, metavar="T", help="default: 1000")
    what.add_argument("--beta-schedule", choices=SCHEDULE_KINDS, help="explicit takes --betas")
    what.add_argument("--beta-start", type=float, metavar="BETA", help="of linear, scaled_linear and sigmoid")
    what.add_argument("--beta-end", type=float, metavar="BETA", help="of linear, scaled_linear and sigmoid")
    what.add_argument("--betas", type=Path, metavar="FILE", help="a JSON list of T numbers, for an explicit schedule")
    what.add_argument(
        "--zero-terminal-snr", action="store_true", default=None, help="rescale the schedule to end in pure noise; "
        "for sample and v_prediction"
    )  # fmt: skip
    what.add_argument(
        "--learn-schedule", action="store_true", default=None, help="learn the schedule between the ends of the given "
        "one, to make the terms of the bound alike, during the first half of the run; saved as explicit betas. "
        "Favors likelihood"
    )  # fmt: skip


def objective_fields(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_objective_flags` parsed as fields of a `TrainingConfig`; None where nothing was given.

    Raises:
        InputError: a file of betas that cannot be read.
    """
    betas = None if args.betas is None else _read_betas(args.betas)
    given_kind = "explicit" if betas is not None and args.beta_schedule is None else args.beta_schedule
    given_timesteps = len(betas) if betas is not None and args.num_train_timesteps is None else args.num_train_timesteps
    return {
        "prediction_type": args.prediction,
        "loss": args.loss,
        "min_snr_gamma": args.min_snr_gamma,
        "variance_type": args.variance,
        "num_train_timesteps": given_timesteps,
        "beta_schedule": given_kind,
        "beta_start": args.beta_start,
        "beta_end": args.beta_end,
        "explicit_betas": betas,
        "zero_terminal_snr": args.zero_terminal_snr,
        "learn_schedule": args.learn_schedule,
    }


def check_objective_flags(args: argparse.Namespace, config: TrainingConfig) -> None:
    """Check that the flags are in range and apply to what is trained.

    Args:
        args: parsed.
        config: the preset's, with the flags in it.

    Raises:
        InputError: a number out of its range, or a flag that does not apply.
    """
    check_at_least(args, num_train_timesteps=1)
    if args.min_snr_gamma is not None:
        if config.loss != "min-snr":
            raise InputError(
                f"--min-snr-gamma does not apply to --loss {config.loss}; add --loss min-snr, or leave it out"
            )
        if not 0.0 < args.min_snr_gamma < math.inf:
            raise InputError(f"--min-snr-gamma is {args.min_snr_gamma}, expected a positive number")
    if config.beta_schedule == "explicit" and config.explicit_betas is None:
        raise InputError("--beta-schedule explicit needs the betas: give a JSON list of numbers with --betas FILE")
    if config.beta_schedule != "explicit" and config.explicit_betas is not None:
        raise InputError(f"--betas does not apply to --beta-schedule {config.beta_schedule}; leave one of the two out")
    for name in ("beta_start", "beta_end"):
        if config.beta_schedule not in SCHEDULES_WITH_ENDS and getattr(args, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} does not apply to the schedule {config.beta_schedule}; leave it out"
            )


def _read_betas(path: Path) -> tuple[float, ...]:
    try:
        values = read_json(path, "give a list of T numbers")
    except InputError as error:
        raise InputError(f"--betas {error}") from None
    if not isinstance(values, list) or not values or not all(type(value) in (int, float) for value in values):
        raise InputError(f"--betas {path}: found no list of numbers, expected the betas of T timesteps; correct it")
    try:
        betas = tuple(float(value) for value in values)
        NoiseSchedule.explicit(betas)
        return betas
    except InputError as error:
        raise in_file(f"--betas {path}", error, "correct it") from None
    except OverflowError:
        raise InputError(
            f"--betas {path}: holds a whole number too large for a float, expected 0 < beta < 1; correct it"
        ) from None


def add_mlp_flags(parser: argparse.ArgumentParser, out: str, steps: str) -> None:
    """--out, --steps, --seed and --overwrite; the first two are None where they are not given.

    Args:
        parser: extended in place.
        out, steps: the defaults, for the help.
    """
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"default: {out}")
    parser.add_argument("--steps", type=int, metavar="N", help=f"updates of the weights (default: {steps})")
    parser.add_argument("--seed", type=int, default=0, help="0 to 2^64 - 1 (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace a trained network that is there")


def check_mlp_flags(args: argparse.Namespace) -> None:
    """Raises InputError if --steps or --seed is out of its range."""
    check_at_least(args, steps=1)
    check_seed(args.seed)


def check_at_least(args: argparse.Namespace, **lowest: int) -> None:
    """Raises InputError if a flag is given and below its lowest value, by the name of its attribute."""
    for name, least in lowest.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} is {value}, expected a whole number of at least {least}")


def check_seed(seed: int | None) -> None:
    """Raises InputError if the seed is given and out of its range."""
    if seed is not None and not 0 <= seed < MAX_SEED:
        raise InputError(f"--seed is {seed}, expected 0 to 2^64 - 1")
