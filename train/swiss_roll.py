"""`python -m train.swiss_roll`: the Gaussian chain on points in the plane, Sohl-Dickstein et al. 2015, figure 1."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from commands.program import Report, make_parser, run_program, say
from commands.system import let_idle_threads_sleep
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from train.flags import add_mlp_flags, check_mlp_flags

DEFAULT_OUT, DEFAULT_STEPS = Path("runs/swiss_roll"), 4000
RADIUS = 2.0
"""Of the roll's outer end; each coordinate then has a standard deviation of nearly 1, as the noise has."""
NOISE_STD = 0.04
"""How thick the roll is."""
_CLIP = 2.5  # all but one point in 10³⁰ lies within
_BATCH_SIZE, _LEARNING_RATE = 256, 5e-3
_WIDTH, _DEPTH, _HARMONICS = 128, 2, 6


def swiss_roll(num: int, generator: np.random.Generator) -> np.ndarray:
    """Points on a spiral of one and a half turns, with Gaussian noise across and along it.

    The cross-section of scikit-learn's `make_swiss_roll`: (r cos r, r sin r) with r uniform in [1.5π, 4.5π], here
    scaled to `RADIUS`.

    Returns:
        float32 [num, 2, 1, 1]: points as images of one pixel with two channels.
    """
    points = roll_curve(generator.random(num))
    points += NOISE_STD * generator.standard_normal(points.shape)
    return points.astype(np.float32)[:, :, None, None]


def roll_curve(place: np.ndarray) -> np.ndarray:
    """The middle of the roll at places [N] in [0, 1], from its inner end to its outer one: float64 [N, 2]."""
    angle = 1.5 * math.pi * (1.0 + 2.0 * place)
    return np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1) * (RADIUS / (4.5 * math.pi))


def roll_process() -> Process:
    """1,000 timesteps of diffusers' linear schedule, an ε-network, `fixed_small`, clipped beyond the roll."""
    return Process(SampleShape(2, 1, 1), NoiseSchedule.make("linear"), clip_sample=_CLIP)


def train(args: argparse.Namespace) -> Report:
    """Train and write the folder.

    Raises:
        InputError: a number out of its range, or a folder that cannot be written.
    """
    check_mlp_flags(args)
    out, steps, seed = args.out or DEFAULT_OUT, args.steps or DEFAULT_STEPS, args.seed
    let_idle_threads_sleep()
    import torch

    from train.mlp import Mlp, MlpConfig, check_free, make_network, write_mlp
    from train.mlp_training import MlpTraining, train_mlp
    from train.objective import Objective

    check_free(out, args.overwrite)
    process, config = roll_process(), MlpConfig(_WIDTH, _DEPTH, _HARMONICS)
    objective = Objective(process)
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    network = make_network(config, process)

    def loss(network: Mlp) -> torch.Tensor:
        # Ho et al. 2020, Algorithm 1; fresh points at every step, so there is nothing to overfit.
        x_start = torch.from_numpy(swiss_roll(_BATCH_SIZE, generator))
        timesteps = torch.from_numpy(generator.integers(process.schedule.num_train_timesteps, size=_BATCH_SIZE))
        eps = torch.from_numpy(generator.standard_normal(x_start.shape, dtype=np.float32))
        return objective.per_sample(network, x_start, timesteps, eps).mean()

    say(f"training on the swiss roll: {steps:,} steps of {_BATCH_SIZE} points")
    began = time.monotonic()
    trained = train_mlp(network, loss, MlpTraining(steps, _BATCH_SIZE, _LEARNING_RATE), "train swiss_roll")
    seconds = time.monotonic() - began
    facts = {"data": "swiss_roll", "steps": steps, "batch_size": _BATCH_SIZE, "seed": seed, "seconds": seconds}
    write_mlp(out, trained, config, process, facts, args.overwrite)
    return {
        "summary": f"{out}: trained {steps:,} steps in {seconds:.0f} s\n"
        f"next: python -m export.mlp_to_onnx --checkpoint {out}",
        "out": str(out),
        **facts,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(
        "train.swiss_roll",
        "Train a small network on points of a spiral, as samples of shape [2, 1, 1]; a minute on two cores.",
    )
    add_mlp_flags(parser, str(DEFAULT_OUT), f"{DEFAULT_STEPS:,}")
    return run_program(parser, train, argv)


if __name__ == "__main__":
    sys.exit(main())
