"""`python -m benchmarks.swiss_roll`: how good samples of the swiss roll are, and a picture of how they come about."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.flags import picture, positive, report_file, seed
from benchmarks.measurement import measurement_facts, write_report
from commands.errors import require_module
from commands.program import Report, make_parser, run_program, say
from commands.progress import progress_bar
from commands.system import check_memory
from commands.whole_files import whole_file
from diffusion.errors import InputError
from diffusion.gaussian import q_sample
from diffusion.process import Process
from diffusion.samplers import DEFAULT_SAMPLER, SAMPLERS, make_table
from diffusion.step_table import StepTable
from runtime.chain.host import HostChain
from runtime.engines.interface import Engine
from runtime.engines.opening import open_engine
from train.swiss_roll import NOISE_STD, roll_curve, swiss_roll

PROG = "benchmarks.swiss_roll"
BANDWIDTH = 0.2  # of the kernel: five times the roll's thickness, half of the gap between its arms
_PICTURED = (1.0, 0.4, 0.2, 0.1, 0.0)  # which parts of the chain are still to come
_DATA_SEED = 20_150_312
_COLORS = 32
_BYTES_PER_POINT = 1000  # trajectories, and the projections that they are compared by


def sliced_wasserstein(first: np.ndarray, second: np.ndarray, num_directions: int = 64) -> float:
    """Root mean square, over directions, of the 2-Wasserstein distance of the projections (Rabin et al. 2012).

    Args:
        first, second: [N, 2], as many points each.
        num_directions: evenly spaced over half a turn.
    """
    angles = np.pi * np.arange(num_directions) / num_directions
    directions = np.stack([np.cos(angles), np.sin(angles)])  # [2, directions]
    # On a line the best transport pairs the points in their order.
    projected, other = (np.sort(points @ directions, axis=0) for points in (first, second))
    return float(np.sqrt(np.mean((projected - other) ** 2)))


def squared_mmd(first: np.ndarray, second: np.ndarray, bandwidth: float) -> float:
    """Maximum mean discrepancy, squared, unbiased, with a Gaussian kernel (Gretton et al. 2012, lemma 6).

    Zero on average for equal distributions, hence negative about half of the time.

    Args:
        first, second: [N, 2] and [M, 2].
        bandwidth: standard deviation of the kernel: the size of the differences that count.
    """
    n, m = len(first), len(second)
    within_first = (_kernel(first, first, bandwidth).sum() - n) / (n * (n - 1))  # k(x, x) = 1 is left out
    within_second = (_kernel(second, second, bandwidth).sum() - m) / (m * (m - 1))
    return float(within_first + within_second - 2.0 * _kernel(first, second, bandwidth).mean())


def distance_to_curve(points: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """Distance of points [N, 2] to the nearest of closely spaced points [K, 2] of a curve: float64 [N]."""
    return np.sqrt(np.maximum(_squared_distances(points, curve), 0.0).min(axis=1))


def _kernel(first: np.ndarray, second: np.ndarray, bandwidth: float) -> np.ndarray:
    return np.exp(-_squared_distances(first, second) / (2.0 * bandwidth**2))


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first[:, None, 0] - second[None, :, 0]) ** 2 + (first[:, None, 1] - second[None, :, 1]) ** 2


@dataclass(frozen=True, eq=False)
class Trajectories:
    """States of samples on their way.

    Attributes:
        timesteps: of each state, −1 for x_0.
        x, x_start: float32 [K, N, 2], the states and the x_0 that the network saw in them.
    """

    timesteps: list[int]
    x: np.ndarray
    x_start: np.ndarray


def draw_trajectories(engine: Engine, table: StepTable, num: int, seed: int) -> Trajectories:
    """Run the runtime's chain and keep the states that are pictured; the last is x_0."""
    rows = len(table)
    wanted = sorted({round((1.0 - part) * rows) for part in _PICTURED})
    chain = HostChain(engine, table, num, with_x_start=True)
    chain.begin([seed] * num, list(range(num)))
    x, x_start = [], []
    with progress_bar(rows, "sampling", unit="step") as bar:
        for step_index in range(rows + 1):
            if step_index in wanted:
                x.append(chain.x[:, :, 0, 0].copy())
            if step_index < rows:
                chain.step()
                bar.update()
            if step_index in wanted:  # what the network sees in this state is known after its call
                assert chain.x_start is not None
                x_start.append(chain.x_start[:, :, 0, 0].copy())
    if not chain.finite().all():
        raise InputError(f"{len(chain.non_finite())} samples are not finite; train and export the network again")
    timesteps = [int(t) for t in np.append(table.timesteps, -1)[wanted]]
    return Trajectories(timesteps, np.stack(x), np.stack(x_start))


def measure(samples: np.ndarray) -> dict[str, Any]:
    """Distances of samples [N, 2] to fresh data, beside those of fresh data and of a Gaussian with the data's moments.

    Fresh data shows what equal distributions have by chance; the Gaussian, what a model that learned only mean and
    covariance would have.
    """
    generator = np.random.default_rng(_DATA_SEED)
    num = len(samples)
    data, other = (swiss_roll(num, generator)[:, :, 0, 0].astype(np.float64) for _ in range(2))
    gaussian = generator.multivariate_normal(data.mean(axis=0), np.cov(data.T), size=num)
    curve = roll_curve(np.linspace(0.0, 1.0, 2000))
    report = {}
    for name, points in (("samples", samples.astype(np.float64)), ("data", other), ("gaussian", gaussian)):
        distance = distance_to_curve(points, curve)
        report[name] = {
            "sliced_wasserstein": sliced_wasserstein(points, data),
            "squared_mmd": squared_mmd(points, data, BANDWIDTH),
            "median_distance_to_roll": float(np.median(distance)),
            "fraction_off_roll": float(np.mean(distance > 5.0 * NOISE_STD)),
        }
    return report


def draw_picture(process: Process, trajectories: Trajectories, path: Path) -> None:
    """Three rows as in Sohl-Dickstein et al. 2015, figure 1: data into noise, noise into data, predicted x_0."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    num = trajectories.x.shape[1]
    generator = np.random.default_rng(_DATA_SEED)
    data = swiss_roll(num, generator)[:, :, 0, 0]
    forward = [
        data if t < 0 else q_sample(process.schedule, data, t, generator.standard_normal(data.shape))
        for t in trajectories.timesteps
    ]
    rows: list[tuple[str, list[np.ndarray]]] = [
        ("forward, q(x_t)", forward),
        ("reverse, p(x_t)", list(trajectories.x)),
        ("predicted x_0", list(trajectories.x_start)),
    ]
    columns = len(trajectories.timesteps)
    figure, axes = plt.subplots(3, columns, figsize=(2 * columns, 6.2), sharex=True, sharey=True)
    for row, (title, states) in enumerate(rows):
        for column, (t, points) in enumerate(zip(trajectories.timesteps, states, strict=True)):
            axis = axes[row, column]
            axis.plot(points[:, 0], points[:, 1], ".", markersize=1.0, color=f"C{row}", rasterized=True)
            axis.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal", xticks=[], yticks=[])
            if row == 0:
                axis.set_title("x_0" if t < 0 else f"t = {t}", fontsize=9)
        axes[row, 0].set_ylabel(title, fontsize=9)
    figure.tight_layout(pad=0.5)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=100)
        with Image.open(temporary) as image:
            small = image.convert("RGB").quantize(_COLORS)  # a third of the bytes
        small.save(temporary, optimize=True)
    plt.close(figure)


def benchmark(args: argparse.Namespace, argv: Sequence[str] | None) -> Report:
    """Run the command; return its report."""
    if args.num < 2:
        raise InputError(f"--num is {args.num}, expected at least 2")
    require_module("matplotlib")
    engine = open_engine(args.engine)
    if engine.process.sample.chw != (2, 1, 1):
        raise InputError(
            f"{args.engine}: samples are {engine.process.sample.chw}, expected points, (2, 1, 1); "
            "make one with `python -m train.swiss_roll` and `python -m export.mlp_to_onnx`"
        )
    table = make_table(engine.process, args.sampler, args.steps)
    check_memory(f"--num {args.num}: the points", args.num * _BYTES_PER_POINT, "give a smaller --num")
    say(f"{args.engine}: {table.sampler} with {len(table)} steps, {args.num} points")
    trajectories = draw_trajectories(engine, table, args.num, args.seed)
    results = measure(trajectories.x[-1])
    draw_picture(engine.process, trajectories, args.picture)
    report: Report = {
        **measurement_facts(PROG, argv),
        "engine": str(args.engine),
        "sampler": table.sampler,
        "steps": len(table),
        "num": args.num,
        "seed": args.seed,
        "bandwidth": BANDWIDTH,
        "results": results,
    }
    lines = [f"{'':<9} {'sliced W2':>10} {'MMD²':>9} {'median off':>11} {'> 5 sd off':>11}"]
    lines += [
        f"{name:<9} {entry['sliced_wasserstein']:10.4f} {entry['squared_mmd']:9.1e} "
        f"{entry['median_distance_to_roll']:11.4f} {entry['fraction_off_roll']:11.2%}"
        for name, entry in results.items()
    ]
    lines += write_report(report, args.out)
    return report | {"picture": str(args.picture), "summary": "\n".join([*lines, str(args.picture)])}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(
        PROG,
        "Compare samples of the swiss roll with fresh data, and draw their way from noise to the roll.",
        "Before it: python -m train.swiss_roll, python -m export.mlp_to_onnx.",
    )
    parser.add_argument("--engine", type=Path, default=Path("swiss_roll.onnx"), help="default: swiss_roll.onnx")
    parser.add_argument("--num", type=positive, default=2000, help="points (default: 2000)")
    parser.add_argument("--seed", type=seed, default=0, help="of the noise (default: 0)")
    parser.add_argument("--sampler", choices=SAMPLERS, default=DEFAULT_SAMPLER, help=f"default: {DEFAULT_SAMPLER}")
    parser.add_argument(
        "--steps", type=positive, metavar="N", help="network calls (default: every timestep of training)"
    )
    parser.add_argument("--picture", type=picture, default=Path("swiss_roll.png"), help="default: swiss_roll.png")
    parser.add_argument("--out", type=report_file, metavar="FILE", help="also write the report to this JSON file")
    return run_program(parser, lambda args: benchmark(args, argv), argv)


if __name__ == "__main__":
    raise SystemExit(main())
