"""`python -m train.binary`: the binomial chain of Sohl-Dickstein et al. 2015: trained, measured in bits and sampled."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from commands.program import Report, make_parser, run_program, say
from commands.system import check_memory, let_idle_threads_sleep
from diffusion.binomial import BinomialProcess, constant_erasure, initial_bits, reverse_loop
from diffusion.binomial_bound import BinomialBound, OptimalBits, estimate_bound
from diffusion.errors import InputError
from diffusion.noise_schedule import MAX_TRAIN_TIMESTEPS
from diffusion.process import SampleShape
from train.flags import add_mlp_flags, check_at_least, check_mlp_flags

HEARTBEAT_LENGTH, HEARTBEAT_PERIOD = 20, 5
_WHITE_FROM = 8  # of the 17 gray levels 0..16
DEFAULT_TIMESTEPS, DEFAULT_NUM_SAMPLES = 2000, 64
# More steps overfit so few digits.
DEFAULT_STEPS = {"heartbeat": 8000, "digits": 3000}
_WIDTH = {"heartbeat": 64, "digits": 128}
_OUT = {"heartbeat": Path("runs/heartbeat"), "digits": Path("runs/binary_digits")}
_DEPTH, _BATCH_SIZE, _LEARNING_RATE = 2, 256, 5e-3
_BOUND_SAMPLES = 252  # for the bound: all held-out digits; every phase of the heartbeat about fifty times
_SHOWN = 10


@dataclass(frozen=True, eq=False)
class BinaryData:
    """Samples to train on, and what is known of their distribution.

    Attributes:
        name: for messages.
        train, test: uint8 [N, C, H, W] of 0 and 1.
        entropy_bits: of the distribution, where `train` is the whole support, equally probable; else None.
        unit: of the bound: bits per sequence or image.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    entropy_bits: float | None
    unit: str


def heartbeats() -> BinaryData:
    """A 1 in every fifth of 20 bins, at five equally probable phases (Sohl-Dickstein et al. 2015, section 3.1.2)."""
    bins, phases = np.arange(HEARTBEAT_LENGTH), np.arange(HEARTBEAT_PERIOD)
    patterns = (bins % HEARTBEAT_PERIOD == phases[:, None]).astype(np.uint8)[:, None, None]  # [5, 1, 1, 20]
    return BinaryData("heartbeat", patterns, patterns, float(np.log2(HEARTBEAT_PERIOD)), "sequence")


def binary_digits() -> BinaryData:
    """1,545 handwritten digits of 8×8 pixels to train on and 252 held out; a pixel is 1 from half intensity on."""
    from train.digits import load_digits_split

    split = load_digits_split()
    train, test = ((images >= _WHITE_FROM).astype(np.uint8) for images in (split.train_images, split.held_out_images))
    return BinaryData("digits", train, test, None, "image")


BINARY_DATA = {"heartbeat": heartbeats, "digits": binary_digits}


def train(args: argparse.Namespace) -> Report:
    """Train, write the folder, estimate the bound, draw samples.

    Raises:
        InputError: a number out of its range, or a folder that cannot be written.
    """
    _check(args)
    data = BINARY_DATA[args.data]()
    let_idle_threads_sleep()
    import torch

    from train.binary_objective import BinaryLoss
    from train.mlp import MlpConfig, check_free, make_network, predict_with, write_mlp
    from train.mlp_training import MlpTraining, train_mlp

    out, steps = args.out or _OUT[data.name], args.steps or DEFAULT_STEPS[data.name]
    check_free(out, args.overwrite)
    schedule = constant_erasure(args.timesteps)
    channels, height, width = data.train.shape[1:]
    process = BinomialProcess(SampleShape(channels, height, width, levels=2), schedule)
    config = MlpConfig(_WIDTH[data.name], _DEPTH)
    torch.manual_seed(args.seed)
    network = make_network(config, process)
    say(f"training on {data.name}: {steps:,} steps of {_BATCH_SIZE} samples, {args.timesteps:,} timesteps")
    began = time.monotonic()
    loss = BinaryLoss(data.train, schedule, _BATCH_SIZE, args.seed)
    trained = train_mlp(network, loss, MlpTraining(steps, _BATCH_SIZE, _LEARNING_RATE), f"train {data.name}")
    seconds = time.monotonic() - began

    def predict(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        return predict_with(trained, x, t)

    say("estimating the bound and drawing samples")
    repeated = np.resize(data.test, (_BOUND_SAMPLES, *data.test.shape[1:]))
    bounds = {"learned": estimate_bound(schedule, predict, repeated, args.seed)}
    if data.entropy_bits is not None:
        weights = np.full(len(data.train), 1.0 / len(data.train))
        bounds["optimum"] = estimate_bound(schedule, OptimalBits(schedule, data.train, weights), repeated, args.seed)
    x_T = initial_bits((args.num_samples, *process.sample.chw), args.seed, 0)
    samples = reverse_loop(schedule, predict, x_T, args.seed)
    facts: dict[str, Any] = {
        "data": data.name,
        "num_train_timesteps": args.timesteps,
        "steps": steps,
        "batch_size": _BATCH_SIZE,
        "seed": args.seed,
        "seconds": seconds,
        "bits": {name: bound_facts(bound) for name, bound in bounds.items()} | {"entropy": data.entropy_bits},
        "fraction_of_samples_in_data": fraction_in(samples, data.train),
    }
    write_mlp(out, trained, config, process, facts, args.overwrite)
    summary = "\n".join(
        [
            f"{out}: trained {steps:,} steps in {seconds:.0f} s",
            *_bound_lines(bounds, data),
            f"{facts['fraction_of_samples_in_data']:.1%} of {args.num_samples} samples are in the training data"
            + (f"; {min(_SHOWN, args.num_samples)} of them:" if data.name == "heartbeat" else ""),
            *(show_rows(samples[:_SHOWN]) if data.name == "heartbeat" else []),
            f"next: python -m export.mlp_to_onnx --checkpoint {out}",
        ]
    )
    return {"summary": summary, "out": str(out), **facts}


def bound_facts(bound: BinomialBound) -> dict[str, float]:
    """A bound for a report, in bits per sample: the total, its parts, and K with its entropies."""
    return {
        "bound": bound.bits,
        "standard_error": bound.standard_error,
        "L_T": bound.prior,
        "sum_of_L_t_minus_1": float(bound.terms[1:].sum(axis=0).mean()),
        "L_0": float(bound.terms[0].mean()),
        "K": bound.K,
        "H_q_X_T_given_X_0": bound.entropy_x_T_given_x_start,
        "H_q_X_1_given_X_0": bound.entropy_x_1_given_x_start,
        "H_p_X_T": bound.entropy_prior,
    }


def _bound_lines(bounds: dict[str, BinomialBound], data: BinaryData) -> list[str]:
    lines = [f"bits per {data.unit:<10} {'bound':>9} {'±':>6} = {'L_T':>6} + {'Σ L_t-1':>8} + {'L_0':>8} {'K':>9}"]
    for name, bound in bounds.items():
        facts = bound_facts(bound)
        lines.append(
            f"  {name:<17} {facts['bound']:9.4f} {facts['standard_error']:6.4f} = {facts['L_T']:6.3f} + "
            f"{facts['sum_of_L_t_minus_1']:8.4f} + {facts['L_0']:8.1e} {facts['K']:9.4f}"
        )
    if data.entropy_bits is not None:
        lines.append(f"  {'entropy of data':<17} {data.entropy_bits:9.4f}")
    return lines


def fraction_in(samples: np.ndarray, patterns: np.ndarray) -> float:
    """The fraction of the samples [N, C, H, W] is equal to one of the patterns [K, C, H, W], bit for bit."""
    known = {pattern.astype(np.uint8).tobytes() for pattern in patterns}
    return sum(sample.astype(np.uint8).tobytes() in known for sample in samples) / len(samples)


def show_rows(samples: np.ndarray) -> list[str]:
    """Samples of one row of bits, [N, 1, 1, W], as lines: `|` for 1, `.` for 0."""
    return ["  " + "".join("|" if bit else "." for bit in sample.reshape(-1)) for sample in samples]


def _check(args: argparse.Namespace) -> None:
    check_at_least(args, timesteps=1, num_samples=1)
    if args.timesteps > MAX_TRAIN_TIMESTEPS:
        raise InputError(f"--timesteps is {args.timesteps}, expected at most {MAX_TRAIN_TIMESTEPS}")
    check_memory(f"--num-samples {args.num_samples}", 64 * 8 * args.num_samples, "give fewer")
    check_mlp_flags(args)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(
        "train.binary",
        "Train the binomial chain on binary data, and print its bound in bits and some samples.",
        "heartbeat: 20 bins with a 1 in every fifth, log2(5) = 2.322 bits; digits: 8x8 pixels, black and white.",
    )
    parser.add_argument("--data", choices=BINARY_DATA, default="heartbeat", help="default: heartbeat")
    parser.add_argument(
        "--timesteps", type=int, default=DEFAULT_TIMESTEPS, metavar="T", help=f"of the chain ({DEFAULT_TIMESTEPS})"
    )
    parser.add_argument(
        "--num-samples", type=int, default=DEFAULT_NUM_SAMPLES, metavar="N", help=f"to draw ({DEFAULT_NUM_SAMPLES})"
    )
    add_mlp_flags(
        parser, " or ".join(map(str, _OUT.values())), " or ".join(f"{steps:,}" for steps in DEFAULT_STEPS.values())
    )
    return run_program(parser, train, argv)


if __name__ == "__main__":
    sys.exit(main())
