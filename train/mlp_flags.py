"""The flags that training a small network has, whatever it is trained on."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffusion.errors import InputError
from diffusion.philox import MAX_SEED


def add_training_flags(parser: argparse.ArgumentParser, out: str, steps: str) -> None:
    """--out, --steps, --seed and --overwrite; the first two are None where they are not given.

    Args:
        parser: extended in place.
        out, steps: the defaults, for the help.
    """
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"default: {out}")
    parser.add_argument("--steps", type=int, metavar="N", help=f"updates of the weights (default: {steps})")
    parser.add_argument("--seed", type=int, default=0, help="0 to 2^64 - 1 (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace a trained network that is there")


def check_training_flags(args: argparse.Namespace) -> None:
    """Raises InputError if --steps or --seed is out of its range."""
    if args.steps is not None and args.steps < 1:
        raise InputError(f"--steps is {args.steps}, expected at least 1")
    if not 0 <= args.seed < MAX_SEED:
        raise InputError(f"--seed is {args.seed}, expected 0 to 2^64 - 1")
