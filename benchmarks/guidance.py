"""`python -m benchmarks.guidance`: what guidance costs, and whether asked-for digits are those digits.

A guided step calls the network on twice as many samples; it is timed by turns with a step of the same network without
guidance. A network of scikit-learn's digits is judged too: a support vector machine that was trained on the real ones
says which digit a sample is.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.digit_judge import DigitJudge
from benchmarks.flags import positive, report_file
from benchmarks.measurement import measurement_facts, time_alternately, write_report
from commands.program import Report, make_parser, run_program, say
from diffusion.errors import InputError
from diffusion.samplers import make_table
from runtime.chain.host import HostChain
from runtime.conditions import given_conditions
from runtime.engines.interface import Engine
from runtime.engines.opening import open_engine
from runtime.images import quantize
from runtime.sampler import Sampler

PROG = "benchmarks.guidance"
GOAL_RATIO, GOAL_SHARE = 2.05, 0.9
_STEPS_TIMED = 10


def time_steps(guided: Engine, plain: Engine, batch_size: int, rounds: int) -> Report:
    """Time a step with guidance and one without by turns; milliseconds are medians over `rounds`."""
    steppers: dict[str, Callable[[], None]] = {}
    for name, engine in (("plain", plain), ("guided", guided)):
        steppers[name] = _stepper(engine, batch_size)
    seconds = time_alternately(steppers, rounds, warmup=1)
    ratios = [g / p for g, p in zip(seconds["guided"], seconds["plain"], strict=True)]
    return {
        "batch_size": batch_size,
        "rounds": rounds,
        **{f"{name}_ms_per_step": 1e3 * float(np.median(times)) / _STEPS_TIMED for name, times in seconds.items()},
        "ratio": float(np.median(ratios)),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def _stepper(engine: Engine, batch_size: int) -> Callable[[], None]:
    chain = HostChain(engine, make_table(engine.process, num_steps=_STEPS_TIMED), batch_size)
    indices = range(batch_size)
    given = given_conditions(engine.process, "all", 2.0 if engine.process.is_guided else None)

    def steps() -> None:
        chain.begin([0] * batch_size, indices, conditions=given.of(indices))
        chain.run()

    return steps


def shares_of_classes(found: np.ndarray, asked: np.ndarray) -> list[float]:
    """For each digit, the share of those that were asked for that are found to be it; both int64 [N]."""
    return [float(np.mean(found[asked == label] == label)) for label in range(10)]


def judge_digits(engine: Engine, scales: Sequence[float], each: int, num_steps: int) -> Report:
    """Draw so many samples of each digit at each scale, and let the machine say what they are."""
    judge = DigitJudge()
    sampler = Sampler(engine, num_steps=num_steps)
    results: list[dict[str, Any]] = []
    for scale in scales:
        say(f"drawing {10 * each} digits with guidance {scale:g}")
        x = sampler.sample_float32(10 * each, seed=1, classes="all", guidance=scale)
        shares = shares_of_classes(judge(quantize(x)), np.arange(10 * each) % 10)
        results.append({"guidance": scale, "of_each_class": shares, "mean": float(np.mean(shares)), "min": min(shares)})
    return {
        "judge": judge.name,
        "judge_held_out_accuracy": judge.held_out_accuracy,
        "samples_of_each_class": each,
        "steps": num_steps,
        "results": results,
    }


def benchmark(args: argparse.Namespace, argv: Sequence[str] | None) -> Report:
    """Run the command; return its report."""
    from export import ExportRequest, export_openvino
    from runtime.engines.checkpoint_folder import read_checkpoint_folder
    from runtime.formats.train_record import TrainRecord

    process = read_checkpoint_folder(args.checkpoint).process.with_guidance()
    if not process.is_guided:
        raise InputError(
            f"{args.checkpoint}: has no null class, expected a network to be guided; train one with "
            "`python -m train.run --classes`"
        )
    with tempfile.TemporaryDirectory() as folder:
        engines = []
        for name, guidance in (("guided", True), ("plain", False)):
            out = Path(folder) / f"{name}.xml"
            export_openvino(ExportRequest(out, args.checkpoint, guidance=guidance))
            engines.append(open_engine(out))
        guided, plain = engines
        steps = [time_steps(guided, plain, size, args.rounds) for size in args.batch_sizes]
        digits = None
        if process.sample.chw == (1, 8, 8) and process.label is not None and process.label.classes == 10:
            digits = judge_digits(guided, args.guidance, args.num, args.steps)
    record = TrainRecord.read(args.checkpoint)
    facts = {} if record is None else record.facts
    report: Report = {
        **measurement_facts(PROG, argv),
        "engine": guided.name,
        "training": {name: facts.get(name) for name in ("command", "seconds", "num_parameters", "held_out_loss")},
        "goals": {"ratio": GOAL_RATIO, "share": GOAL_SHARE},
        "steps": steps,
        "digits": digits,
    }
    lines = [f"{guided.name}: a guided step against one without, medians of {args.rounds} by turns"]
    lines += [f"{'batch':>5} {'plain ms':>9} {'guided ms':>10} {'ratio':>7} {'min..max':>15}"]
    lines += [
        f"{e['batch_size']:5d} {e['plain_ms_per_step']:9.3f} {e['guided_ms_per_step']:10.3f} {e['ratio']:7.3f} "
        f"{e['ratio_min']:7.3f}..{e['ratio_max']:.3f}"
        for e in steps
    ]
    if digits is not None:
        lines.append(f"digits that are what was asked for, by {digits['judge']}, {args.num} of each:")
        lines += [
            f"guidance {e['guidance']:g}: {e['mean']:.3f}, the least of a class {e['min']:.3f}"
            for e in digits["results"]
        ]
    lines += write_report(report, args.out)
    return report | {"summary": "\n".join(lines)}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(PROG, "Time guidance, and judge the digits that are asked for.")
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/digits"), help="default: runs/digits")
    parser.add_argument("--batch-sizes", type=positive, nargs="+", default=[1, 8], metavar="N", help="default: 1 8")
    parser.add_argument("--rounds", type=positive, default=15, help="measurements of each side (default: 15)")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0], metavar="G", help="default: 1 2")
    parser.add_argument("--num", type=positive, default=100, help="digits of each class (default: 100)")
    parser.add_argument("--steps", type=positive, default=250, help="of their chains (default: 250)")
    parser.add_argument("--out", type=report_file, help="also write the report to this JSON file")
    return run_program(parser, lambda args: benchmark(args, argv), argv)


if __name__ == "__main__":
    raise SystemExit(main())
