"""`python -m benchmarks.likelihood`: the bound on the likelihood in bits/dim, through any engine.

Noise and timesteps depend on the seed alone, so two engines see the same draws: a difference of 1e-3 bits/dim, which no
sample shows, is many standard errors. `--against` measures it in one run, on pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.flags import positive, report_file, seed
from benchmarks.likelihood.bound_estimate import BoundEstimate, check_plot_path, plot_bound
from benchmarks.likelihood.bound_evaluation import BoundEvaluator
from benchmarks.likelihood.level_images import check_levels, load_level_images
from benchmarks.likelihood.timestep_plan import (
    Evaluations,
    make_plan,
    most_evaluations,
    pilot_evaluations,
    timestep_probability,
)
from benchmarks.measurement import measurement_facts
from commands.program import Report, make_parser, run_program, say
from commands.progress import progress_bar
from commands.whole_files import write_whole_text
from diffusion.process import Process
from runtime.engines.opening import DEVICES, EngineOptions, open_engine
from runtime.process_flags import add_process_flags, process_flags
from train.flags import add_data_flags, data_request

PROG = "benchmarks.likelihood"
DEFAULT_EVALUATIONS = 16384
_MIN_PER_IMAGE = 8


def benchmark(args: argparse.Namespace, argv: Sequence[str] | None) -> Report:
    """Run the command; return its report."""
    begin = time.perf_counter()
    if args.plot is not None:
        check_plot_path(args.plot)
    paths = [args.engine] if args.against is None else [args.engine, args.against]
    flags = process_flags(args)
    engines = [open_engine(path, EngineOptions(args.device, args.threads, flags, args.allow_pickle)) for path in paths]
    process = engines[0].process
    images = load_level_images(data_request(args, "digits"), process.sample, args.num)
    for note in images.notes:
        say(f"{images.name}: {note}")
    processes = [
        engine.process if args.levels is None else _with_levels(engine.process, args.levels) for engine in engines
    ]
    num, num_timesteps = len(images.x_start), process.schedule.num_train_timesteps
    evaluator = BoundEvaluator(engines, images.x_start, args.batch_size, args.seed, processes)
    evaluator.warm_up()

    asked = args.evaluations or max(DEFAULT_EVALUATIONS, _MIN_PER_IMAGE * num)
    pilot = pilot_evaluations(num, num_timesteps, asked)
    pilot_begin = time.perf_counter()
    # The first engine's terms alone: the plan is about where the bound lies, not about what the engines differ in.
    pilot_nats = _evaluate(evaluator, pilot, "pilot")[0]
    seconds_each = (time.perf_counter() - pilot_begin) / max(len(pilot.image), 1)
    probability = timestep_probability(pilot, pilot_nats, num_timesteps)
    if args.budget is not None:
        seconds_left = max(args.budget - (time.perf_counter() - begin), 0.0)
        asked = int(min(seconds_left / max(seconds_each, 1e-9), most_evaluations(probability, num)))
    plan = make_plan(probability, num, asked, args.seed)
    nats = _evaluate(evaluator, plan.evaluations, "bound")
    bounds = [
        BoundEstimate.from_terms(one, images.x_start, plan, row) for one, row in zip(processes, nats, strict=True)
    ]

    report: Report = {
        **measurement_facts(PROG, argv),
        "data": images.name,
        "images": num,
        "levels": images.levels,
        "seed": args.seed,
        "evaluations": len(plan.weight),
        "pilot_evaluations": len(pilot.image),
        "replicates": plan.num_replicates,
        "seconds": time.perf_counter() - begin,
        "checkpoint_sha256": process.checkpoint_sha256,
        "engine": _engine_facts(args.engine, engines[0].name, engines[0].sha256),
        **bounds[0].report(),
    }
    lines = _summary(args.engine, report, bounds[0])
    if args.against is not None:
        cost = bounds[0].minus(bounds[1])
        report["against"] = _engine_facts(args.against, engines[1].name, engines[1].sha256) | bounds[1].report()
        report["difference"] = cost.report()
        lines += [
            f"{args.against} ({engines[1].name}): {bounds[1].total.mean:.5f} bits/dim on the same draws",
            f"  {args.engine} costs {cost.mean:+.2e} bits/dim, ± {cost.monte_carlo_error:.1e} (Monte Carlo, paired), "
            f"± {_number(cost.population_error, '.1e')} (population)",
        ]
        lines += _other_settings(engines[0].process, engines[1].process)
    if args.plot is not None:
        plot_bound(args.plot, bounds, [path.name for path in paths])
        lines.append(str(args.plot))
    if args.out is not None:
        write_whole_text(args.out, json.dumps(report, indent=1, allow_nan=False) + "\n")
        lines.append(str(args.out))
    return report | {"summary": "\n".join(lines)}


def _with_levels(process: Process, levels: int) -> Process:
    check_levels(levels, process.sample.levels)
    return replace(process, sample=replace(process.sample, levels=levels))


def _evaluate(evaluator: BoundEvaluator, evaluations: Evaluations, description: str) -> np.ndarray:
    with progress_bar(len(evaluations.image), description) as bar:
        return evaluator.nats(evaluations, bar.update)


def _engine_facts(path: Path, name: str, sha256: str) -> dict[str, str]:
    return {"path": str(path), "name": name, "sha256": sha256}


def _summary(path: Path, report: Report, bound: BoundEstimate) -> list[str]:
    total, terms = bound.total, report["terms"]
    relative = total.monte_carlo_error / total.mean
    return [
        f"{path} ({report['engine']['name']}): {report['data']}, {report['images']} images, "
        f"{report['evaluations']} evaluations in {report['seconds']:.1f} s",
        f"  {total.mean:.5f} bits/dim",
        f"  ± {total.monte_carlo_error:.5f} Monte Carlo, given these images ({relative:.2%})",
        f"  ± {_number(total.population_error, '.5f')} population, over images",
        f"  L_T {terms['L_T']['bits_per_dim']:.5f}, L_1 to L_T-1 {terms['L_1 to L_T-1']['bits_per_dim']:.5f}, "
        f"L_0 {terms['L_0']['bits_per_dim']:.5f}; half of it lies below t = {bound.half_below()}",
    ]


def _other_settings(ours: Process, theirs: Process) -> list[str]:
    return [
        f"  note: {name} is {getattr(ours, name)} here and {getattr(theirs, name)} there; the difference counts it in"
        for name in ("prediction_type", "variance_type", "clip_sample")
        if getattr(ours, name) != getattr(theirs, name)
    ]


def _number(value: float | None, spec: str) -> str:
    return "unknown" if value is None else format(value, spec)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(
        PROG,
        "Measure the variational bound on the likelihood, in bits/dim, through an engine.",
        epilog="Runs with equal --seed, --data, --num and --evaluations use the same noise and timesteps, whatever the "
        "engine. With --budget the number of evaluations depends on the machine.",
    )
    parser.add_argument("--engine", type=Path, default=Path("unet.onnx"), help="default: unet.onnx")
    parser.add_argument("--against", type=Path, metavar="ENGINE", help="another engine, to print the difference")
    add_data_flags(parser, "digits", "test; of data without splits, what train.run holds out, or train, or all")
    parser.add_argument("--num", type=positive, metavar="N", help="the first N images (default: all)")
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument(
        "--evaluations", type=positive, metavar="M", help=f"default: {DEFAULT_EVALUATIONS}, or 8 per image if more"
    )
    how_many.add_argument(
        "--budget", type=_seconds, metavar="SECONDS", help="as many evaluations as fit into this time"
    )
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="of a network call (default: 64)")
    parser.add_argument("--seed", type=seed, default=0, help="of noise and timesteps (default: 0)")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="default: cpu")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="of the CPU; 0 for all (default)")
    parser.add_argument("--allow-pickle", action="store_true", help="read a checkpoint's weights from a pickle")
    parser.add_argument("--out", type=report_file, metavar="FILE.json", help="also write the report to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the terms over timesteps")
    add_process_flags(parser)
    return run_program(parser, lambda args: benchmark(args, argv), argv)


if __name__ == "__main__":
    raise SystemExit(main())
