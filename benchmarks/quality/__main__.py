"""`python -m benchmarks.quality`: distance to the data against network calls and seconds, for every sampler.

Which of them makes, with few network calls, samples as near to the data as Algorithm 2 does with all 1,000?
Samples are compared with the data by the Fréchet distance in the features of a small network trained on the real
digits (no Inception-FID), by precision and recall, by density and coverage, and by the shares of the classes that an
independent classifier sees. Tables of the user's, such as fitted ones, are judged beside the built-in samplers. Every
comparison is at equal numbers of samples, from equal x_T. What is measured is written after each run, and the same
command goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.digit_judge import DigitJudge
from benchmarks.flags import positive, report_file
from benchmarks.measurement import measurement_facts, medians_ms, time_alternately
from benchmarks.quality.conclusions import conclude
from benchmarks.quality.data import DIGITS, load_features, load_images
from benchmarks.quality.results import Results
from benchmarks.quality.samples import Configuration, SampleStore, all_samplers, all_spacings, check_sampler, method_of
from benchmarks.quality.score import Scorer
from benchmarks.quality.search import Search
from commands.errors import StoppedError, require_module
from commands.program import Report, make_parser, run_program, say
from commands.progress import progress_bar
from diffusion.errors import InputError
from diffusion.samplers import DEFAULT_SAMPLER, make_table
from diffusion.spacing import SPACINGS
from runtime.chain.host import HostChain
from runtime.engines.interface import Engine
from runtime.engines.opening import DEVICES, EngineOptions, open_engine
from runtime.process_flags import add_process_flags, process_flags
from train.digits import BUNDLED
from train.flags import add_data_flags, data_request

PROG = "benchmarks.quality"
_NONE = "none"
_SCREENING_NUM = 1000
_DEFAULT_STEPS = (5, 10, 20, 50, 100, 1000)
_TIMED_STEPS = 5
_TIMED_BATCH = 64


def time_samplers(engine: Engine, samplers: Sequence[str], rounds: int) -> Report:
    """Milliseconds per network call of each sampler's chain and of the network alone, by turns; medians."""
    process = engine.process
    shape = (_TIMED_BATCH, *process.sample.chw)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    t = np.full(_TIMED_BATCH, process.schedule.num_train_timesteps // 2, dtype=np.float32)
    prediction = np.zeros((_TIMED_BATCH, process.prediction_channels, *shape[2:]), dtype=np.float32)
    call = engine.bind(x, t, prediction)
    steps = min(_TIMED_STEPS, process.schedule.num_train_timesteps)
    names = list(dict.fromkeys(method_of(name) for name in samplers))
    chains = {name: HostChain(engine, make_table(process, name, steps), _TIMED_BATCH) for name in names}

    def network() -> None:
        for _ in range(steps):
            call()

    def run(name: str) -> None:
        chains[name].begin([0] * _TIMED_BATCH, range(_TIMED_BATCH))
        chains[name].run()

    # Spaces keep this name apart from every sampler's.
    candidates: dict[str, Callable[[], object]] = {
        "the network": network,
        **{name: partial(run, name) for name in names},
    }
    milliseconds = medians_ms(time_alternately(candidates, rounds, warmup=1))
    return {
        "batch_size": _TIMED_BATCH,
        "rounds": rounds,
        "network_ms_per_call": milliseconds["the network"] / steps,
        "ms_per_call": {name: milliseconds[name] / steps for name in names},
    }


def benchmark(args: argparse.Namespace, argv: Sequence[str] | None) -> Report:
    """Run the command; return its report."""
    require_module("matplotlib")
    request = data_request(args, DIGITS)
    engine = open_engine(args.engine, EngineOptions(args.device, args.threads, process_flags(args), args.allow_pickle))
    process = engine.process
    samplers = [check_sampler(name, process) for name in args.samplers or all_samplers(process)]
    ancestral = [name for name in samplers if method_of(name) == DEFAULT_SAMPLER]
    no_references = args.references == [_NONE]
    references = [] if no_references else [check_sampler(name, process) for name in args.references or ancestral]
    are_ddpm = all(method_of(name) == DEFAULT_SAMPLER for name in references)
    if not are_ddpm or not (references or args.reference_from or no_references):
        found = ", ".join(references) or "no ddpm among --samplers"
        raise InputError(f"references: found {found}; expected ddpm, as --references ddpm")
    train, held_out, data_sha256, notes = load_images(request, process.sample)
    total = process.schedule.num_train_timesteps
    tables = [Configuration.of_table(path, process) for path in args.table or ()]
    default_steps = {table.num_steps for table in tables} or {count for count in _DEFAULT_STEPS if count <= total}
    steps = sorted(set(args.steps or default_steps))
    if steps and steps[-1] > total:
        raise InputError(f"--steps {steps[-1]}: the network was trained on {total} timesteps, expected 1 to {total}")
    if args.num < 5:
        raise InputError(f"--num is {args.num}, expected at least 5: precision and recall need neighbors")
    screening_num = min(args.num, _SCREENING_NUM) if args.screening_num is None else args.screening_num
    if not 5 <= screening_num <= args.num:
        raise InputError(f"--screening-num is {screening_num}, expected 5 to --num, which is {args.num}")
    for note in notes:
        say(f"{request.data}: {note}")
    say(f"{request.data}: {len(train)} images, {0 if held_out is None else len(held_out)} held out")
    features, said_of_features = load_features(args.features, request.data, train, held_out)
    judge = DigitJudge(request.data) if request.data in BUNDLED else None
    setup: dict[str, Any] = {
        "engine_sha256": engine.sha256,
        "process": process.to_json(),
        "data": {"name": request.data, "num_train": len(train), "sha256": data_sha256},
        "features": said_of_features,
        "classifier": None if judge is None else {"name": judge.name, "held_out_accuracy": judge.held_out_accuracy},
        "num": args.num,
        "screening_num": screening_num,
    }
    results = Results(args.out, setup, measurement_facts(PROG, argv), range(1, args.seeds + 1))
    if args.reference_from is not None:
        results.adopt_references(args.reference_from, total)
    scorer = Scorer(features, train, held_out, judge)
    results.write(floor={"total_variance": scorer.total_variance, **scorer.floor(args.num)})
    try:
        with progress_bar(0, "network calls x samples", unit="") as bar:

            def announce(calls: int) -> None:
                bar.total += calls
                bar.refresh()

            store = SampleStore(engine, min(args.batch_size, args.num), args.samples, bar.update)
            search = Search(process, store, scorer, results, args.num, screening_num, announce)
            if args.reference_from is None:
                search.references(references)
            search.tables(tables)
            for count in steps:
                search.grid(samplers, args.spacings or all_spacings(), count, args.refine)
            if not tables:
                search.fewest(args.refine)
        results.write(timing=time_samplers(engine, samplers, args.rounds))
    except KeyboardInterrupt:
        raise StoppedError(f"stopped; what was measured is in {args.out}, and the same command goes on") from None
    report = results.write(**conclude(results, total))
    from benchmarks.quality.plot import draw_quality

    plot = args.plot or args.out.with_suffix(".png")
    draw_quality(report, plot)
    return report | {"summary": "\n".join([*summary_lines(report), str(args.out), str(plot)])}


def summary_lines(report: Report) -> list[str]:
    """The table that the command prints."""
    floor, reference = report["floor"], report.get("reference")
    lines = [
        f"Fréchet distance to {report['setup']['data']['name']}, n = {report['setup']['num']}, {len(report['seeds'])} "
        f"seeds; features: {report['setup']['features']['name']}",
        f"{'as many real images, resampled':44} {floor['train_resampled']['frechet']:9.5f}",
    ]
    if "held_out" in floor:
        lines.append(f"held-out images, n = {floor['held_out']['num']:<24d} {floor['held_out']['frechet']:9.5f}")
    lines += [f"{'':44} {'distance':>9} {'ratio':>7} {'+-':>6}  within"]
    if reference is None:
        lines += ["no reference: ddpm with every timestep was not drawn, or none of its samples are finite"]
    else:
        lines += [f"{reference['sampler']}, {reference['calls']} calls".ljust(44) + f" {reference['frechet']:9.5f}"]
    for key, entry in report.items():
        if key.startswith("best_at_"):
            lines.append(_line(f"{entry['calls']} calls: {entry['sampler']}, {entry['spacing']}", entry))
    return [*lines, *(_table_line(entry) for key, entry in report.items() if key.startswith("table_at_"))]


def _line(name: str, entry: dict[str, Any]) -> str:
    line = f"{name:44} {entry['frechet']:9.5f}"
    if "ratio" not in entry:
        return line
    error = "" if entry["ratio_se"] is None else f"{entry['ratio_se']:.3f}"
    return f"{line} {entry['ratio']:7.3f} {error:>6}  {'yes' if entry['within'] else 'no'}"


def _table_line(entry: dict[str, Any]) -> str:
    line, against = _line(f"{entry['calls']} calls: {entry['sampler']}", entry), entry.get("against_built_in")
    if against is None:
        return line
    error = "" if against["difference_se"] is None else f" +- {against['difference_se'] / against['frechet']:.2f}"
    return f"{line}; {against['ratio']:.2f}{error} of {against['sampler']}, {against['spacing']}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(PROG, "Measure the distance to the data against network calls, for every sampler.", _EPILOG)
    parser.add_argument("--engine", type=Path, default=Path("unet.onnx"), help="default: unet.onnx")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="default: cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all this process may use)")
    add_data_flags(parser, DIGITS, "train, or all of what has no splits")
    parser.add_argument("--features", metavar="FILE", help=_FEATURES_HELP)
    parser.add_argument("--steps", type=_numbers, metavar="N,N,...", help=_STEPS)
    parser.add_argument("--samplers", type=_names, metavar="NAME,...", help="default: all, ddpm with either variance")
    parser.add_argument("--references", type=_names, metavar="NAME,...", help=_REFERENCES)
    parser.add_argument("--reference-from", type=Path, metavar="FILE", help=_REFERENCE_FROM)
    parser.add_argument("--table", type=Path, action="append", metavar="FILE", help=_TABLE)
    parser.add_argument("--spacings", type=_spacings, metavar="NAME,...", help="default: all")
    parser.add_argument("--num", type=int, default=10_000, help="samples of each (default: 10000)")
    parser.add_argument("--screening-num", type=int, metavar="N", help=_SCREENING)
    parser.add_argument("--seeds", type=positive, default=5, metavar="K", help="judge by seeds 1 to K (default: 5)")
    parser.add_argument("--refine", type=positive, default=3, metavar="R", help=_REFINE)
    parser.add_argument("--batch-size", type=positive, default=250, metavar="N", help="default: 250")
    parser.add_argument("--rounds", type=positive, default=9, help="of the timing (default: 9)")
    parser.add_argument("--samples", type=Path, metavar="FOLDER", help="keep all samples here, and use those kept")
    parser.add_argument("--out", type=report_file, default=Path("quality.json"), help="default: quality.json")
    parser.add_argument("--plot", type=Path, help="default: --out with the suffix .png")
    parser.add_argument("--allow-pickle", action="store_true", help="read a checkpoint's weights from a pickle")
    add_process_flags(parser)
    return run_program(parser, lambda args: benchmark(args, argv), argv)


def _numbers(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))


def _spacings(text: str) -> list[str]:
    names = _names(text)
    unknown = [name for name in names if name not in SPACINGS]
    if unknown:
        raise argparse.ArgumentTypeError(f"found {unknown[0]!r}, expected some of {', '.join(SPACINGS)}")
    return names


_FEATURES_HELP = (
    "a TorchScript file of Inception for FID, which runs as a program; default: of digits and mnist, a small "
    "classifier trained here"
)
_REFERENCE_FROM = (
    "take what ddpm with every timestep reached from this result of this command, of the same checkpoint, data, "
    "features, --num and seeds, instead of drawing it again"
)
_TABLE = (
    "judge this table too, such as a fitted one, beside the built-in samplers; several times for several. --steps is "
    "then, by default, their numbers of calls"
)
_STEPS = "numbers of network calls to measure (default: 5,10,20,50,100,1000); ddpm with every timestep always is"
_REFERENCES = (
    "ddpm, ddpm:fixed_small, ddpm:fixed_large: run with every timestep (default: those among --samplers); none: draw "
    "no reference"
)
_SCREENING = "samples of each with seed 0, which only chooses what is judged (default: 1000, at most --num)"
_REFINE = "at each number of calls, judge the R that seed 0 ranks first (default: 3)"
_EPILOG = """All samplers and spacings are measured once, with seed 0 and fewer samples; the best R at each number of
calls are measured again with the seeds 1 to K and judged by those alone, against ddpm with every timestep on the
same seeds. Then, without --table, a bisection looks for the smallest number of calls that is within 5 % or 2 standard
errors of it."""

if __name__ == "__main__":
    raise SystemExit(main())
