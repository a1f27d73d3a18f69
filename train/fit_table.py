"""`python -m train.fit_table`: a table of few network calls, fitted to one checkpoint."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from commands.program import Report, make_parser, run_program
from commands.system import let_idle_threads_sleep
from commands.whole_files import check_name
from diffusion.errors import InputError
from diffusion.samplers import SAMPLERS
from diffusion.spacing import SPACINGS
from runtime.formats.table_file import OBJECTIVES
from runtime.sampler import MAX_THREADS
from train.datasets import DataRequest
from train.flags import add_data_flags, check_at_least, check_seed, data_request

_DESCRIPTION = """Fit the coefficients and timesteps of a sampler's table to one checkpoint, for a given number of
network calls, by gradient through the whole chain. It begins with the best built-in table and writes a table for
`python -m runtime.sample --sampler FILE.json`, which runs with every engine of that checkpoint and no other."""
_EXAMPLES = """examples:
  python -m train.fit_table --steps 5                        runs/digits -> table_5.json, minutes on two cores
  python -m train.fit_table --steps 5 --objective teacher    as near as possible to a chain of 40 calls
  python -m train.fit_table --steps 10 --spacing gits --iterations 0    timesteps by dynamic programming, no gradient
"""
_FEATURES = ("both", "pixels", "network")
_SAMPLERS = tuple(name for name, method in SAMPLERS.items() if not method.stochastic)
_OBJECTIVE_HELP = (
    "data: the energy distance between samples and data (default); teacher: the distance to what a chain of 40 calls "
    "makes of the same noise, which needs no data"
)
_FEATURES_HELP = "of --objective data: pixels, features of a small network that is trained here, or both (default)"
_TIMESTEPS_HELP = "free: moved by gradient, then rounded (default); fixed: those of the start"
_BALL_HELP = "of --objective teacher: how far x_T may move, as a share of its length, while it is fitted; default: 0.02"


def make_fit_parser() -> argparse.ArgumentParser:
    """The command line of `train.fit_table`."""
    parser = make_parser("train.fit_table", _DESCRIPTION, _EXAMPLES)
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("runs/digits"), metavar="FOLDER", help="default: runs/digits"
    )
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="network calls; default: 5")
    parser.add_argument("--objective", choices=OBJECTIVES, default="data", help=_OBJECTIVE_HELP)
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: table_N.json")
    parser.add_argument("--seed", type=int, default=0, help="0 to 2^64 - 1; default: 0")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished fit of --out, if there is one")
    start = parser.add_argument_group("start (default: the best of all by a short search)")
    start.add_argument("--sampler", choices=_SAMPLERS, help="begin with a table of this method")
    start.add_argument(
        "--spacing", choices=(*SPACINGS, "gits"), help="gits: by dynamic programming on 256 trajectories of the teacher"
    )
    how = parser.add_argument_group("fit")
    how.add_argument("--timesteps", choices=("free", "fixed"), help=_TIMESTEPS_HELP)
    how.add_argument("--iterations", type=int, metavar="N", help="gradient steps; default: 120; 0 for the start itself")
    how.add_argument("--batch-size", type=int, metavar="N", help="samples of each; default: 128")
    how.add_argument("--learning-rate", type=float, metavar="RATE", help="default: 0.01")
    how.add_argument("--features", choices=_FEATURES, help=_FEATURES_HELP)
    how.add_argument("--pairs", type=int, metavar="N", help="of --objective teacher: samples of it; default: 1024")
    how.add_argument("--ball", type=float, metavar="R", help=_BALL_HELP)
    how.add_argument(
        "--guidance", type=float, metavar="G", help="the scale to fit for, of a guided network; default: 1"
    )
    how.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    how.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads; default: all")
    how.add_argument("--allow-pickle", action="store_true", help="read a checkpoint whose weights are a pickle")
    add_data_flags(parser, "what the checkpoint was trained on", "train, or all of what has no splits")
    return parser


def main(args: argparse.Namespace, argv: Sequence[str]) -> Report:
    """Check the flags, then fit.

    Raises:
        InputError, DeviceUnavailableError, VerificationError, StoppedError: as `train.fitting.run.fit_table`.
    """
    _check(args)
    out = args.out or Path(f"table_{args.steps}.json")
    check_name(out)
    check_name(out.with_name(f"{out.name}.state"))
    request = data_request(args, "")
    if not request.data and request != DataRequest(""):
        raise InputError("--split, --levels and the other flags of the data were given without --data; add it")
    let_idle_threads_sleep()
    from train.fitting.fit import FitConfig
    from train.fitting.run import FitRequest, fit_table

    def given(value: float | None, default: float) -> float:
        return default if value is None else value

    return fit_table(
        FitRequest(
            checkpoint=args.checkpoint,
            num_steps=args.steps,
            objective=args.objective,
            out=out,
            seed=args.seed,
            sampler=args.sampler,
            spacing=args.spacing,
            config=FitConfig(
                iterations=int(given(args.iterations, 120)),
                batch_size=int(given(args.batch_size, 128)),
                learning_rate=given(args.learning_rate, 0.01),
                free_timesteps=args.timesteps != "fixed",
            ),
            features=args.features or "both",
            num_pairs=int(given(args.pairs, 1024)),
            ball=given(args.ball, 0.02),
            guidance=args.guidance,
            data=request,
            device=args.device,
            threads=args.threads,
            allow_pickle=args.allow_pickle,
            resume=args.resume,
        ),
        must_move_timesteps=args.timesteps == "free",
    )


def _check(args: argparse.Namespace) -> None:
    check_at_least(args, steps=1, iterations=0, batch_size=2, pairs=2, threads=0)
    check_seed(args.seed)
    if args.threads > MAX_THREADS:
        raise InputError(f"--threads is {args.threads}, expected at most {MAX_THREADS}")
    if args.out is not None and args.out.suffix != ".json":
        raise InputError(f"--out is {args.out}, expected a name that ends in .json")
    if args.learning_rate is not None and not 0.0 < args.learning_rate < math.inf:
        raise InputError(f"--learning-rate is {args.learning_rate}, expected a positive number")
    if args.ball is not None and not 0.0 <= args.ball < 1.0:
        raise InputError(f"--ball is {args.ball}, expected at least 0 and less than 1")
    if args.guidance is not None and not math.isfinite(args.guidance):
        raise InputError(f"--guidance is {args.guidance}, expected a number")
    if args.objective == "teacher":
        if args.features is not None:
            raise InputError("--features does not apply to --objective teacher; leave it out")
        if args.data is not None:
            raise InputError("--data does not apply to --objective teacher, which needs none; leave it out")
    else:
        for name in ("pairs", "ball"):
            if getattr(args, name) is not None:
                raise InputError(f"--{name} does not apply to --objective data; add --objective teacher")
    batch_size, pairs = args.batch_size or 128, args.pairs or 1024
    if args.objective == "teacher" and pairs < batch_size:
        raise InputError(f"--pairs is {pairs}, expected at least --batch-size, which is {batch_size}")


def run(argv: Sequence[str] | None = None) -> int:
    """The command, with `argv` in place of the process's own arguments; returns the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    return run_program(make_fit_parser(), lambda args: main(args, given), given)


if __name__ == "__main__":
    sys.exit(run())
