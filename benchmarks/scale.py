"""`python -m benchmarks.scale`: what runs in shards cost beside the network, and how they share a CPU.

Every figure is of whole commands in processes of their own, or of processes that take turns.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.flags import positive, report_file
from benchmarks.measurement import measurement_facts, write_report
from commands.program import Report, make_parser, run_program, say
from diffusion.errors import InputError
from runtime.engines.opening import EngineOptions, open_engine
from runtime.formats.run_manifest import RunManifest
from runtime.formats.shard_record import ShardRecord
from runtime.runs.shard_files import file_name
from runtime.runs.shard_folder import identity_sha256
from runtime.runs.shards import ShardPlan
from runtime.runs.store import RUN_FILES
from runtime.sampler import Sampler

PROG = "benchmarks.scale"
GOALS = {"resume_seconds": 2.0, "bookkeeping": 0.005, "ray_overhead": 0.03, "two_workers_to_two_threads": 1.0}
_SHARDS, _SHARD_SIZE = 1000, 1000
_BATCH_SIZES = (1, 8, 64)
_TURN_SECONDS = 2.0


def sample(*flags: str) -> dict[str, Any]:
    """Run `runtime.sample` in a process of its own: its report, with its wall and CPU seconds and its peak memory."""
    read, write = os.pipe()
    began = time.perf_counter()
    words = [sys.executable, "-m", "runtime.sample", "--backend", "onnxruntime", "--json", *flags]
    process = os.posix_spawn(sys.executable, words, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)])
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as out:
        text = out.read()
    _, status, usage = os.wait4(process, 0)
    if status:
        ended = os.waitstatus_to_exitcode(status)
        raise InputError(f"{' '.join(words[1:])} ended with {ended}; what it said stands above, mend that")
    return json.loads(text) | {
        "wall_seconds": time.perf_counter() - began,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
    }


def resume(engine: str, rounds: int) -> Report:
    """`--resume` of a run of 10⁶ images whose 1,000 shards are done: the whole command, from process to report."""
    flags = ["--engine", engine, "--steps", "1", "--batch-size", "50", "--shard-size", str(_SHARD_SIZE)]
    sample(*flags, "--num", str(_SHARD_SIZE), "--out", "one")
    manifest = RunManifest.read(Path("one"))
    assert manifest is not None
    identity = manifest.identity | {"num": _SHARDS * _SHARD_SIZE}
    plan = ShardPlan(0, identity["num"], _SHARD_SIZE, 50)
    first = Path("one", file_name(plan[0], "npz"))
    record = ShardRecord.parse(first.with_suffix(".json").read_bytes(), str(first))
    folder = Path("million")
    folder.mkdir()
    for shard in plan:  # as if all images were those of the first shard
        name = file_name(shard, "npz")
        (folder / name).write_bytes(first.read_bytes())
        facts = (identity_sha256(identity), shard.first, shard.num, name, record.num_bytes, record.sha256)
        (folder / name).with_suffix(".json").write_text(ShardRecord(*facts).to_text())
    RunManifest(identity, RUN_FILES).write(folder)
    runs = [sample(*flags, "--num", str(identity["num"]), "--out", "million", "--resume") for _ in range(rounds)]
    assert all(run["shards_drawn"] == 0 for run in runs)
    return _medians(runs, "wall_seconds", "cpu_seconds", "peak_mib")


def bookkeeping(engine: str, rounds: int) -> Report:
    """Of the time of a run, what is not spent in steps."""
    flags = ["--engine", engine, "--steps", "50", "--batch-size", "64", "--shard-size", "512", "--num", "1024"]
    runs = [sample(*flags, "--out", f"run{place}") for place in range(rounds)]
    return {"share": 1.0 - statistics.median(run["network_share"] for run in runs), "rounds": rounds}


def ray(engine: str, rounds: int) -> Report:
    """Two workers of our own and two of Ray's, by turns: of a worker's time, what is not spent in steps."""
    flags = ["--engine", engine, "--steps", "20", "--batch-size", "64", "--shard-size", "64", "--num", "768"]
    runs: dict[str, list[dict[str, Any]]] = {"workers": [], "ray": []}
    for place in range(rounds):
        for name, more in (("workers", ["--workers", "2"]), ("ray", ["--ray", "local", "--workers", "2"])):
            runs[name].append(sample(*flags, *more, "--out", f"{name}{place}"))
    idle = {name: 1.0 - statistics.median(run["network_share"] for run in each) for name, each in runs.items()}
    seconds = {name: statistics.median(run["seconds"] for run in each) for name, each in runs.items()}
    return {
        "overhead": idle["ray"] - idle["workers"],
        "outside_steps": idle,
        "run_seconds": seconds,
        "command_seconds": {
            name: statistics.median(run["wall_seconds"] for run in each) for name, each in runs.items()
        },
        "rounds": rounds,
    }


def memory(engine: str) -> Report:
    """The peak of a run's memory, for runs of different lengths."""
    flags = ["--engine", engine, "--steps", "1", "--batch-size", "64", "--shard-size", "1024"]
    peaks = {num: sample(*flags, "--num", num, "--out", f"memory{num}")["peak_mib"] for num in ("1024", "16384")}
    return {"peak_mib": peaks, "ratio": peaks["16384"] / peaks["1024"]}


def threads(engine: str, rounds: int) -> list[Report]:
    """Two processes of one thread against one of two, by turns: samples and steps per second."""
    context = multiprocessing.get_context("spawn")
    teams: dict[str, list[Connection]] = {"two workers": [], "two threads": []}
    processes = []
    for name, count in (("two workers", 1), ("two workers", 1), ("two threads", 2)):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_draw_when_told, args=(theirs, engine, count), daemon=True))
        processes[-1].start()
        teams[name].append(ours)
    results = []
    for batch_size in _BATCH_SIZES:
        rates: dict[str, list[float]] = {name: [] for name in teams}
        for place in range(rounds + 1):
            for name, team in teams.items():
                for connection in team:
                    connection.send(batch_size)
                rate = sum(connection.recv() for connection in team)
                if place:  # the first call of a batch compiles
                    rates[name].append(rate)
        ratios = [w / t for w, t in zip(rates["two workers"], rates["two threads"], strict=True)]
        results.append(
            {
                "batch_size": batch_size,
                "two_workers_to_two_threads": statistics.median(ratios),
                "min": min(ratios),
                "max": max(ratios),
                "sample_steps_per_second": {name: statistics.median(each) for name, each in rates.items()},
                "rounds": rounds,
            }
        )
    for process in processes:
        process.terminate()
        process.join()
    return results


def _draw_when_told(connection: Connection, engine: str, count: int) -> None:
    """Draw for some seconds in batches of a size that is sent; send back samples and steps per second."""
    samplers: dict[int, Sampler] = {}
    while True:
        size = connection.recv()
        if size not in samplers:
            samplers[size] = Sampler(engine, num_steps=10, batch_size=size, threads=count, backend="onnxruntime")
        began, moved = time.perf_counter(), 0
        for batch in samplers[size].batches(1 << 20):
            moved += 10 * len(batch.x)
            if time.perf_counter() - began >= _TURN_SECONDS:
                break
        connection.send(moved / (time.perf_counter() - began))


def _medians(runs: Sequence[Mapping[str, Any]], *names: str) -> Report:
    return {name: statistics.median(run[name] for run in runs) for name in names} | {"rounds": len(runs)}


def benchmark(args: argparse.Namespace, argv: Sequence[str] | None) -> Report:
    """Run the command; return its report."""
    engine = str(args.engine.resolve())
    open_engine(args.engine, EngineOptions(threads=1, backend="onnxruntime"))  # whether it can be used
    parts: dict[str, Callable[[], Any]] = {
        "resume": lambda: resume(engine, args.rounds),
        "bookkeeping": lambda: bookkeeping(engine, args.rounds),
        "ray": lambda: ray(engine, args.rounds),
        "threads": lambda: threads(engine, args.rounds),
        "memory": lambda: memory(engine),
    }
    facts = measurement_facts(PROG, argv)
    out = None if args.out is None else args.out.absolute()
    report: Report = {"format": 1, **facts, "network": str(args.engine), "goals": GOALS}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for name in args.parts:
                say(f"measuring: {name}")
                report[name] = parts[name]()
        finally:
            os.chdir(before)
    lines = [f"{name}: {json.dumps(report[name])}" for name in args.parts]
    return report | {"summary": "\n".join(lines + write_report(report, out))}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(PROG, "Measure what runs in shards cost beside the network, and how they share a CPU.")
    parser.add_argument("--engine", type=Path, default=Path("unet.onnx"), help="default: unet.onnx")
    names = ("resume", "bookkeeping", "ray", "threads", "memory")
    parser.add_argument("--parts", nargs="*", choices=names, default=list(names), help="default: all")
    parser.add_argument("--rounds", type=positive, default=5, help="of each measurement (default: 5)")
    parser.add_argument("--out", type=report_file, help="also write the report to this JSON file")
    return run_program(parser, lambda args: benchmark(args, argv), argv)


if __name__ == "__main__":
    raise SystemExit(main())
