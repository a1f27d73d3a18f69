"""`python -m train.binary`: the binomial chain of Sohl-Dickstein et al. 2015, trained, weighed in bits and sampled."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from commands.idle_threads import let_idle_threads_sleep
from commands.memory import check_memory
from commands.program import Report, make_parser, run_program, say
from diffusion.binomial import PredictLogits, constant_erasure, initial_bits, reverse_loop
from diffusion.binomial_bound import BinomialBound, estimate_bound
from diffusion.binomial_optimum import OptimalBits
from diffusion.binomial_process import BinomialProcess
from diffusion.errors import InputError
from diffusion.noise_schedule import MAX_TRAIN_TIMESTEPS, NoiseSchedule
from diffusion.process import SampleShape
from train.binary_data import BINARY_DATA, BinaryData
from train.training_flags import add_mlp_flags, check_mlp_flags

if TYPE_CHECKING:
    import torch

    from train.mlp import Mlp

DEFAULT_TIMESTEPS, DEFAULT_NUM_SAMPLES = 2000, 64
# More steps on so few digits learn them by heart.
DEFAULT_STEPS = {"heartbeat": 8000, "digits": 3000}
_WIDTH = {"heartbeat": 64, "digits": 128}
_OUT = {"heartbeat": Path("runs/heartbeat"), "digits": Path("runs/binary_digits")}
_DEPTH, _BATCH_SIZE, _LEARNING_RATE = 2, 256, 5e-3
_BOUND_SAMPLES = 252  # for the bound: all held-out digits; every phase of the heartbeat about fifty times
_SHOWN = 10


def train(args: argparse.Namespace) -> Report:
    """Train, write the folder, estimate the bound, draw samples.

    Raises:
        InputError: a number out of its range, or a folder that cannot be written.
    """
    _check(args)
    data = BINARY_DATA[args.data]()
    let_idle_threads_sleep()
    import torch

    from train.mlp import MlpConfig
    from train.mlp_folder import check_free, make_network, predict_with, write_mlp
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
    loss = _Loss(data.train, schedule, args.seed)
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
    samples = _draw(schedule, predict, process, args.num_samples, args.seed)
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


class _Loss:
    def __init__(self, patterns: np.ndarray, schedule: NoiseSchedule, seed: int) -> None:
        from train.binary_objective import BinaryObjective

        self._patterns, self._schedule = patterns.astype(np.float32), schedule
        self._objective = BinaryObjective(schedule)
        self._generator = np.random.default_rng(seed)

    def __call__(self, network: Mlp) -> torch.Tensor:
        import torch

        num_timesteps, generator = self._schedule.num_train_timesteps, self._generator
        x_start = torch.from_numpy(self._patterns[generator.integers(len(self._patterns), size=_BATCH_SIZE)])
        # One timestep from each of as many equal parts of 0..T−1: uniform, but with less variance.
        place = (np.arange(_BATCH_SIZE) + generator.random(_BATCH_SIZE)) / _BATCH_SIZE
        timesteps = torch.from_numpy((place * num_timesteps).astype(np.int64))
        uniform = torch.from_numpy(generator.random(x_start.shape, dtype=np.float32))
        x_t = self._objective.corrupt(x_start, timesteps, uniform)
        logits = network(x_t, timesteps.float())
        return num_timesteps * self._objective.bits(logits, x_start, x_t, timesteps).mean()


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


def _draw(schedule: NoiseSchedule, predict: PredictLogits, process: BinomialProcess, num: int, seed: int) -> np.ndarray:
    return reverse_loop(schedule, predict, initial_bits((num, *process.sample.chw), seed, 0), seed)


def fraction_in(samples: np.ndarray, patterns: np.ndarray) -> float:
    """Which part of the samples [N, C, H, W] is equal to one of the patterns [K, C, H, W], bit for bit."""
    known = {pattern.astype(np.uint8).tobytes() for pattern in patterns}
    return sum(sample.astype(np.uint8).tobytes() in known for sample in samples) / len(samples)


def show_rows(samples: np.ndarray) -> list[str]:
    """Samples of one row of bits, [N, 1, 1, W], as lines: `|` for 1, `.` for 0."""
    return ["  " + "".join("|" if bit else "." for bit in sample.reshape(-1)) for sample in samples]


def _check(args: argparse.Namespace) -> None:
    for name in ("timesteps", "num_samples"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected at least 1")
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
