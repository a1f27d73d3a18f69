"""`python -m benchmarks.chain`: what the chain costs beyond its network calls, chain / (steps × network alone).

Both sides run the same engine on the same buffers by turns: one calls the network `steps` times, the other runs a
chain of as many steps, noise and posterior update included.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.flags import positive, report_file
from benchmarks.measurement import measurement_facts, medians_ms, time_alternately, write_report
from commands.program import Report, make_parser, run_program, say
from commands.system import check_memory
from diffusion.samplers import make_table
from runtime.chain.host import HostChain
from runtime.engines.interface import Engine
from runtime.engines.onnx_opening import ONNX_BACKENDS
from runtime.engines.opening import open_engine

PROG = "benchmarks.chain"
GOAL = 1.02


def measure(engine: Engine, batch_size: int, num_steps: int, rounds: int) -> Report:
    """Time the chain and the network alone by turns; milliseconds are medians over `rounds`."""
    process = engine.process
    held = 10 * 4 * batch_size * process.sample.num_elements  # ours and the chain's; the network's own comes on top
    check_memory(f"--batch-sizes {batch_size}: the arrays", held, "give smaller ones")
    table = make_table(process, num_steps=num_steps)
    chain = HostChain(engine, table, batch_size)
    shape = (batch_size, *process.sample.chw)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    t = np.full(batch_size, table.timesteps[0], dtype=np.float32)
    prediction = np.zeros((batch_size, process.prediction_channels, *shape[2:]), dtype=np.float32)
    call = engine.bind(x, t, prediction)

    def network_alone() -> None:
        for _ in range(num_steps):
            call()

    def whole_chain() -> None:
        chain.begin([0] * batch_size, range(batch_size))
        chain.run()

    seconds = time_alternately({"network": network_alone, "chain": whole_chain}, rounds, warmup=1)
    milliseconds = medians_ms(seconds)
    # Pair by pair, so that a machine whose speed drifts disturbs both sides of every ratio.
    ratios = [c / n for c, n in zip(seconds["chain"], seconds["network"], strict=True)]
    return {
        "engine": engine.name,
        "batch_size": batch_size,
        "steps": num_steps,
        "rounds": rounds,
        "network_ms_per_step": milliseconds["network"] / num_steps,
        "chain_ms_per_step": milliseconds["chain"] / num_steps,
        "ratio": float(np.median(ratios)),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def benchmark(args: argparse.Namespace, argv: Sequence[str] | None) -> Report:
    """Run the command; return its report."""
    if args.engine is not None:
        engine = open_engine(args.engine, backend=args.backend)
        network = str(args.engine)
        results = [measure(engine, size, args.steps, args.rounds) for size in args.batch_sizes]
    else:
        network = "ddpm-cifar10-32, random weights"
        with tempfile.TemporaryDirectory() as folder:
            say("exporting the 35.7 M-parameter network")
            # Only where it is needed: torch and the exporter take seconds to import.
            from benchmarks.networks import save_cifar10_checkpoint
            from export import ExportRequest, export_onnx

            onnx = Path(folder) / "unet.onnx"
            export_onnx(ExportRequest(onnx, save_cifar10_checkpoint(Path(folder) / "checkpoint")))
            engine = open_engine(onnx, backend=args.backend)
            results = [measure(engine, size, args.steps, args.rounds) for size in args.batch_sizes]
    report: Report = {
        **measurement_facts(PROG, argv),
        "network": network,
        "goal": GOAL,
        "results": results,
    }
    lines = [f"{network}: chain / (steps x network alone), medians of {args.rounds} by turns"]
    lines += [f"{'batch':>5} {'network ms':>11} {'chain ms':>9} {'ratio':>7} {'min..max':>15}"]
    lines += [
        f"{e['batch_size']:5d} {e['network_ms_per_step']:11.3f} {e['chain_ms_per_step']:9.3f} {e['ratio']:7.4f} "
        f"{e['ratio_min']:7.4f}..{e['ratio_max']:.4f}"
        for e in results
    ]
    lines += write_report(report, args.out)
    return report | {"summary": "\n".join(lines)}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(PROG, "Time the chain against the same number of calls of its network alone.")
    parser.add_argument(
        "--engine", type=Path, help="default: the 35.7 M-parameter network, exported with random weights"
    )
    parser.add_argument(
        "--backend", choices=ONNX_BACKENDS, default="onnxruntime", help="of ONNX (default: onnxruntime)"
    )
    parser.add_argument("--batch-sizes", type=positive, nargs="+", default=[8], metavar="N", help="default: 8")
    parser.add_argument("--steps", type=positive, default=10, help="of the chain (default: 10)")
    parser.add_argument("--rounds", type=positive, default=9, help="measurements of each side (default: 9)")
    parser.add_argument("--out", type=report_file, help="also write the report to this JSON file")
    return run_program(parser, lambda args: benchmark(args, argv), argv)


if __name__ == "__main__":
    raise SystemExit(main())
