"""`python -m benchmarks.kernels`: the compiled step with its noise against PyTorch's on the same state.

PyTorch's side is what a sampling loop in PyTorch runs after the network: `torch.randn_like` and the arithmetic of
one clipped DDPM step (Ho et al. 2020, eq. 6 and 7), with in-place operations where they save memory traffic. Both
sides are first checked to compute the same, then timed by turns with the same number of threads.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.flags import positive, report_file
from benchmarks.measurement import cpu_count, measurement_facts, medians_ms, time_alternately, write_report
from commands.errors import VerificationError
from commands.program import Report, make_parser, run_program
from commands.system import check_memory
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.normal import draw_number, normal_batch
from diffusion.process import Process, SampleShape
from diffusion.samplers import DEFAULT_SAMPLER, SAMPLERS, make_table
from diffusion.step_table import COLUMNS
from runtime.kernels_module import import_kernels

PROG = "benchmarks.kernels"
GOAL = 4.0
TORCH = "torch"
BYTES_PER_ELEMENT = (12, 20, 28)
"""By the number of histories, float32: x and each history read and written, the prediction read."""
# Noise is the larger part of a step's arithmetic, so each sampler is compared with one that draws as much of it.
_WITH_NOISE, _WITHOUT_NOISE = "ddpm", "ddim"


class Step:
    """A batch in the middle of a chain, advanced by the compiled step or by PyTorch.

    Args:
        shape: (N, C, H, W).
        sampler: one of `diffusion.samplers.SAMPLERS`, with all 1,000 timesteps; PyTorch's side is `ddpm` alone.
    """

    def __init__(self, shape: tuple[int, int, int, int], sampler: str = DEFAULT_SAMPLER) -> None:
        import torch

        self._torch = torch
        num, channels, height, width = shape
        process = Process(SampleShape(channels, height, width), NoiseSchedule.make("linear"), clip_sample=1.0)
        self._table = table = make_table(process, sampler)
        rng = np.random.default_rng(0)
        self.coefficients, self.timesteps = table.cast(), table.timesteps.astype(np.int32)
        self.x = rng.normal(size=shape).astype(np.float32)
        self.prediction = rng.normal(size=shape).astype(np.float32)
        self.row = np.zeros(num, np.int32)
        self.flag = np.zeros(num, np.int32)
        self.seed, self.sample_index = np.zeros(num, np.uint64), np.arange(num, dtype=np.uint64)
        self.t = np.zeros(num, np.float32)
        self.histories = {name: np.zeros_like(self.x) for name in ("h1", "h2")[: table.histories]}
        self.x_torch, self.prediction_torch = torch.from_numpy(self.x.copy()), torch.from_numpy(self.prediction)
        self.torch_row = 0

    @property
    def adds_noise(self) -> bool:
        """Whether any row does."""
        return bool((self.coefficients[:, COLUMNS.index("s")] != 0).any())

    def compiled(self, isa: str, threads: int) -> Callable[[], None]:
        """A call that advances the batch by one row with the compiled step."""
        step = import_kernels().HostStep(
            self.coefficients, self.timesteps, histories=self._table.histories, learned=False,
            h2_is_x_start=self._table.h2_is_x_start, clip=1.0, x=self.x, prediction=self.prediction, t=self.t,
            row=self.row, flag=self.flag, seed=self.seed, sample_index=self.sample_index, isa=isa, threads=threads,
            **self.histories,
        )  # fmt: skip
        last = len(self.timesteps) - 1  # the last row adds no noise

        def run() -> None:
            if self.row[0] == last:
                self.row[:] = 0
            step.run()

        return run

    def pytorch(self, noise: np.ndarray | None = None) -> None:
        """Advance the batch by one row with PyTorch; `noise` instead of its own, to compare."""
        values = self.coefficients[self.torch_row % (len(self.timesteps) - 1)].tolist()
        row = dict(zip(COLUMNS, values, strict=True))
        z = self._torch.randn_like(self.x_torch) if noise is None else self._torch.from_numpy(noise)
        x_start = (row["u"] * self.x_torch).add_(self.prediction_torch, alpha=row["v"]).clamp_(-1.0, 1.0)
        self.x_torch.mul_(row["a"]).add_(x_start, alpha=row["b"]).add_(z, alpha=row["s"])
        self.torch_row += 1


def check(shape: tuple[int, int, int, int], isa: str) -> float:
    """Largest difference between the two sides after one step with equal noise.

    Raises:
        VerificationError: it is more than rounding explains.
    """
    step = Step(shape)
    noise = normal_batch(shape[1:], step.seed, step.sample_index, draw_number(int(step.timesteps[0])))
    step.compiled(isa, threads=0)()
    step.pytorch(noise)
    difference = float(np.abs(step.x - step.x_torch.numpy()).max())
    if not difference < 1e-5:
        raise VerificationError(f"{isa}: the step differs from PyTorch's by {difference:.2g}, expected below 1e-5")
    return difference


def measure(shape: tuple[int, int, int, int], threads: int, rounds: int) -> list[dict[str, Any]]:
    """Time PyTorch and every instruction set with `threads` threads; one entry each, PyTorch first."""
    import torch

    step = Step(shape)
    candidates: dict[str, Callable[[], object]] = {TORCH: step.pytorch}
    candidates |= {isa: step.compiled(isa, threads) for isa in import_kernels().isa_levels()}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        milliseconds = medians_ms(time_alternately(candidates, rounds))
    finally:
        torch.set_num_threads(before)
    num_bytes = step.x.size * BYTES_PER_ELEMENT[0]
    return [
        {
            "name": name,
            "threads": threads,
            "median_ms": ms,
            "gb_per_s": num_bytes / ms / 1e6,
            "ratio": milliseconds[TORCH] / ms,
        }
        for name, ms in milliseconds.items()
    ]


def measure_histories(shape: tuple[int, int, int, int], threads: int, rounds: int) -> list[dict[str, Any]]:
    """Time the step of every sampler by turns, with the fastest instruction set.

    Args:
        shape: (N, C, H, W).
        threads: of the step.
        rounds: measurements of each.

    Returns:
        One entry for each sampler: `ratio`, its time over that of `against`, a sampler without histories, which takes
        `bytes_ratio` times fewer bytes.
    """
    isa = import_kernels().isa_levels()[-1]
    steps = {sampler: Step(shape, sampler) for sampler in SAMPLERS}
    calls = {sampler: step.compiled(isa, threads) for sampler, step in steps.items()}
    milliseconds = medians_ms(time_alternately(calls, rounds))
    entries = []
    for sampler, step in steps.items():
        histories = len(step.histories)
        against = _WITH_NOISE if step.adds_noise else _WITHOUT_NOISE
        ms, num_bytes = milliseconds[sampler], step.x.size * BYTES_PER_ELEMENT[histories]
        entries.append(
            {
                "sampler": sampler,
                "histories": histories,
                "noise": step.adds_noise,
                "isa": isa,
                "threads": threads,
                "median_ms": ms,
                "gb_per_s": num_bytes / ms / 1e6,
                "against": against,
                "ratio": ms / milliseconds[against],
                "bytes_ratio": BYTES_PER_ELEMENT[histories] / BYTES_PER_ELEMENT[0],
            }
        )
    return entries


def benchmark(args: argparse.Namespace, argv: Sequence[str] | None) -> Report:
    """Check, measure, report."""
    import torch

    torch.manual_seed(0)
    shape = tuple(args.shape)
    check_memory(f"--shape {' '.join(map(str, shape))}: the arrays", math.prod(shape) * 8 * 10, "give a smaller one")
    threads = sorted(set(args.threads or [1, cpu_count()]))
    if max(threads) > cpu_count():
        raise InputError(f"--threads is {max(threads)}; expected at most the {cpu_count()} CPUs of this process")
    differences = {isa: check(shape, isa) for isa in import_kernels().isa_levels()}
    results = [entry for count in threads for entry in measure(shape, count, args.rounds)]
    histories = measure_histories(shape, max(threads), args.rounds)
    best = import_kernels().isa_levels()[-1]
    ratio = min(entry["ratio"] for entry in results if entry["name"] == best)
    report: Report = {
        **measurement_facts(PROG, argv),
        "shape": shape,
        "rounds": args.rounds,
        "largest_difference": max(differences.values()),
        "results": results,
        "ratio": ratio,
        "goal": GOAL,
        "histories": histories,
    }
    lines = [f"{'x'.join(map(str, shape))} float32, one step with noise, medians of {args.rounds} by turns"]
    lines += [f"{'':10} {'threads':>7} {'ms':>8} {'GB/s':>7} {'ratio':>7}"]
    lines += [
        f"{e['name']:10} {e['threads']:7d} {e['median_ms']:8.3f} {e['gb_per_s']:7.2f} {e['ratio']:6.1f}x"
        for e in results
    ]
    lines += [f"{best} against torch, the least over threads: {ratio:.1f}x (goal {GOAL:.0f}x)"]
    lines += [f"the step of other samplers, {max(threads)} threads, and its time over that of one without histories"]
    lines += [
        f"{e['sampler']:14} {e['histories']} histories {e['median_ms']:8.3f} ms {e['gb_per_s']:7.2f} GB/s "
        f"{e['ratio']:5.2f}x {e['against']} ({e['bytes_ratio']:.2f}x its bytes)"
        for e in histories
    ]
    lines += write_report(report, args.out)
    report["summary"] = "\n".join(lines)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(PROG, "Time the compiled step with its noise against PyTorch's randn_like and arithmetic.")
    parser.add_argument("--shape", type=positive, nargs=4, default=[64, 3, 32, 32], metavar=("N", "C", "H", "W"))
    parser.add_argument("--threads", type=positive, nargs="+", help="numbers of threads (default: 1 and every CPU)")
    parser.add_argument("--rounds", type=positive, default=200, help="measurements of each side (default: 200)")
    parser.add_argument("--out", type=report_file, help="also write the report to this JSON file")
    return run_program(parser, lambda args: benchmark(args, argv), argv)


if __name__ == "__main__":
    raise SystemExit(main())
