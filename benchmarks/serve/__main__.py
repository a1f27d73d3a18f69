"""`python -m benchmarks.serve`: what the slots cost, and how many more requests they serve than static batches do.

Three parts. *Rate*: on a clock that counts rows, where the schedule alone matters, the requests a second that each
policy serves while 95 % of them take no longer than a limit. *Wall*: the same requests on this machine's clock with a
real engine, the policies by turns. *Overhead*: CPU seconds of a full batch through the slots and of the same chain
alone, by turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.flags import positive, report_file
from benchmarks.measurement import measurement_facts, time_alternately, write_report
from benchmarks.serve.arrivals import InstantEngine, RowClock, WallClock, latencies, poisson_arrivals
from benchmarks.serve.policies import POLICIES
from commands.program import Report, make_parser, run_program, say
from runtime.chain.host import HostChain
from runtime.engines.interface import Engine
from runtime.engines.opening import open_engine
from runtime.serve.image_request import ImageRequest, RequestTables
from runtime.serve.slots import Slots
from runtime.serve.ticket import Ticket

PROG = "benchmarks.serve"
_BISECTIONS = 12


def p95_on_rows(policy: str, rate: float, num_slots: int, steps: Sequence[int], num: int) -> float:
    """The 95th percentile of what requests take, in rows, at a rate of requests a row."""
    clock = RowClock()
    engine = InstantEngine(clock, max(steps))
    slots = POLICIES[policy](engine, num_slots, threads=1, clock=clock)
    arrivals = poisson_arrivals(num, rate, steps, np.random.default_rng(0))
    return float(np.quantile(latencies(slots, engine, arrivals, clock), 0.95))


def largest_rate(policy: str, limit: float, num_slots: int, steps: Sequence[int], num: int) -> float:
    """The requests a row that a policy serves within the limit, as a part of what the slots can do at most."""
    capacity = num_slots / float(np.mean(steps))
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if p95_on_rows(policy, middle * capacity, num_slots, steps, num) <= limit:
            low = middle
        else:
            high = middle
    return low


def rates(num_slots: int, steps: Sequence[int], num: int) -> list[Report]:
    """The largest rates of all policies for limits of one and a half, two, three and five of the longest chains."""
    found = []
    for factor in (1.5, 2.0, 3.0, 5.0):
        limit = factor * max(steps)
        parts = {policy: largest_rate(policy, limit, num_slots, steps, num) for policy in POLICIES}
        say(f"p95 within {limit:g} rows: " + ", ".join(f"{name} {part:.3f}" for name, part in parts.items()))
        ratios = {name: parts["slots"] / part if part else None for name, part in parts.items() if name != "slots"}
        found.append({"p95_limit_rows": limit, "part_of_capacity": parts, "slots_to": ratios})
    return found


def overhead(engine: Engine, num_slots: int, num_steps: int, rounds: int) -> Report:
    """What the slots add to a step, in CPU time: as a ratio with a real network, in microseconds without one."""
    seconds = time_full_batches(engine, num_slots, num_steps, rounds)
    ratios = [ours / alone for ours, alone in zip(seconds["slots"], seconds["chain"], strict=True)]
    # The shortest of many: a busy machine only adds to it.
    bare = time_full_batches(InstantEngine(RowClock(), num_steps), num_slots, num_steps, 100)
    return {
        "engine": engine.name,
        "slots": num_slots,
        "steps": num_steps,
        "rounds": rounds,
        "chain_cpu_ms_per_step": 1e3 * float(np.median(seconds["chain"])) / num_steps,
        "slots_cpu_ms_per_step": 1e3 * float(np.median(seconds["slots"])) / num_steps,
        "ratio": float(np.median(ratios)),
        "ratio_quartiles": [float(np.quantile(ratios, part)) for part in (0.25, 0.75)],
        "scheduling_us_per_step": 1e6 * (min(bare["slots"]) - min(bare["chain"])) / num_steps,
    }


def time_full_batches(engine: Engine, num_slots: int, num_steps: int, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of a full batch through the slots, and of the same chain by itself, by turns."""
    slots, tables = Slots(engine, num_slots), RequestTables(engine.process, engine.precision)
    requests = [ImageRequest(seed=seed, steps=num_steps) for seed in range(num_slots)]
    table = tables.table(requests[0])
    chain = HostChain(engine, table, num_slots)

    def by_itself() -> None:
        chain.begin(range(num_slots), [0] * num_slots)
        chain.run()

    def through_the_slots() -> None:
        for request in requests:
            x = np.empty((1, *engine.process.sample.chw), np.float32)
            slots.add(Ticket(request, table, x, 0.0, given=request.given(engine.process)))
        while slots.tick():
            pass

    return time_alternately({"chain": by_itself, "slots": through_the_slots}, rounds, 2, time.process_time)


def seconds_of_a_row(engine: Engine, num_slots: int, num_steps: int) -> float:
    """On this machine's clock, of a full batch."""
    table = RequestTables(engine.process, engine.precision).table(ImageRequest(steps=num_steps))
    chain = HostChain(engine, table, num_slots)

    def run() -> None:
        chain.begin(range(num_slots), [0] * num_slots)
        chain.run()

    return float(np.median(time_alternately({"chain": run}, 3, warmup=1)["chain"])) / num_steps


def wall(
    engine: Engine, num_slots: int, steps: Sequence[int], part: float, num: int, row_s: float, rounds: int
) -> list[Report]:
    """What requests take on this machine's clock, seconds, at a part of the capacity; the policies by turns."""
    clock = WallClock()
    rate = part * num_slots / float(np.mean(steps)) / row_s
    taken: dict[str, list[np.ndarray]] = {policy: [] for policy in POLICIES}
    for number in range(rounds):
        for policy in POLICIES:
            slots = POLICIES[policy](engine, num_slots, clock=clock)
            arrivals = poisson_arrivals(num, rate, steps, np.random.default_rng(number))
            taken[policy].append(latencies(slots, engine, arrivals, clock))
    return [
        {
            "policy": policy,
            "part_of_capacity": part,
            "requests_per_s": rate,
            "requests": num * rounds,
            "p50_s": float(np.median(np.concatenate(each))),
            "p95_s": float(np.quantile(np.concatenate(each), 0.95)),
        }
        for policy, each in taken.items()
    ]


def benchmark(args: argparse.Namespace, argv: Sequence[str] | None) -> Report:
    """Run the command; return its report."""
    report: Report = {"format": 1, **measurement_facts(PROG, argv)}
    report |= {"slots": args.slots, "steps": args.steps, "requests": args.requests}
    report["rates"] = rates(args.slots, args.steps, args.requests)
    lines = ["requests at an equal p95, slots to static batches (of any tables, of one table):"]
    for each in report["rates"]:
        ratios = ", ".join("-" if ratio is None else f"{ratio:.2f}" for ratio in each["slots_to"].values())
        lines.append(f"  p95 within {each['p95_limit_rows']:g} rows: {ratios}")
    if args.engine is not None:
        engine = open_engine(args.engine)
        cost = report["overhead"] = overhead(engine, args.slots, max(args.steps), args.rounds)
        lines.append(
            f"a step through the slots to one without: {cost['ratio']:.4f}; "
            f"scheduling takes {cost['scheduling_us_per_step']:.1f} µs of it"
        )
        row_s = seconds_of_a_row(engine, args.slots, max(args.steps))
        report["wall"] = wall(engine, args.slots, args.steps, args.part, args.wall_requests, row_s, args.wall_rounds)
        lines += [
            f"  {each['policy']}: p50 {each['p50_s']:.3f} s, p95 {each['p95_s']:.3f} s" for each in report["wall"]
        ]
    lines += write_report(report, args.out)
    return report | {"summary": "\n".join(lines)}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(PROG, "Compare the slots of the service with static batches.")
    parser.add_argument("--engine", type=Path, help="for the parts on this machine's clock (default: none of them)")
    parser.add_argument("--slots", type=positive, default=8, help="default: 8")
    parser.add_argument("--steps", type=positive, nargs="+", default=[20, 100], help="of requests (default: 20 100)")
    parser.add_argument("--requests", type=positive, default=2000, help="of each rate that is tried (default: 2000)")
    parser.add_argument("--rounds", type=positive, default=15, help="of the overhead (default: 15)")
    parser.add_argument("--part", type=float, default=0.6, help="of the capacity, on this machine's clock (0.6)")
    parser.add_argument("--wall-requests", type=positive, default=200, help="of a round there (default: 200)")
    parser.add_argument("--wall-rounds", type=positive, default=3, help="rounds there (default: 3)")
    parser.add_argument("--out", type=report_file, help="also write the report to this JSON file")
    return run_program(parser, lambda args: benchmark(args, argv), argv)


if __name__ == "__main__":
    raise SystemExit(main())
