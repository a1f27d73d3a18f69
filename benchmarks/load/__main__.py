"""`python -m benchmarks.load`: the service under load over HTTP, beside static batches and diffusers' pipeline.

Loads are of two kinds: *closed*, a number of clients that ask again as soon as they are answered, and *open*, requests
that come at random times (Poisson) at a part of the capacity, which is what the slots answered to 64 clients. Services
take turns at each load. Clients and services share this machine's CPUs, as the report says; CPU seconds of a
request are those of the service alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.flags import positive, report_file
from benchmarks.load.clients import SEED, Mixture, Outcome, closed_loop, open_loop
from benchmarks.load.services import PIPELINE, REFERENCE, SERVICES, RunningService
from benchmarks.load.summary import slope_per_minute, summarize
from benchmarks.measurement import measurement_facts, write_report
from commands.errors import VerificationError, require_module
from commands.program import Report, make_parser, run_program, say
from diffusion.errors import InputError
from runtime.sampler import Sampler

PROG = "benchmarks.load"
_CAPACITY_CLIENTS = 64
_CHECKED = 64  # images of each number of steps that are compared with `runtime.sample`'s
_MOST_CLIENTS = 1024  # descriptors that a process usually may have open


def expected_images(engine: Path, steps: Sequence[int], slots: int) -> dict[int, np.ndarray]:
    """Steps → the first images of `SEED` in batches of as many as there are slots, uint8 [n, H, W, C]."""
    num = -(-_CHECKED // slots) * slots
    return {each: Sampler(engine, num_steps=each, batch_size=slots).sample(num, seed=SEED) for each in set(steps)}


class Measurement:
    """Puts loads on services.

    Args:
        args: of the command line.
        expected: what images must be.
    """

    def __init__(self, args: argparse.Namespace, expected: dict[int, np.ndarray]) -> None:
        self._args, self._expected = args, expected

    def closed(self, service: RunningService, clients: int, seconds: float) -> Report:
        """A number of clients."""
        run = partial(closed_loop, service.url, clients, seconds, self._mixture(service), self._args.grace)
        return {"load": "closed", "clients": clients} | self._put(service, run)

    def open(self, service: RunningService, part: float, capacity: float, seconds: float) -> Report:
        """Requests at random times, at a part of the capacity."""
        rate, clients, rng = part * capacity, max(self._args.clients), np.random.default_rng(1)
        run = partial(open_loop, service.url, clients, rate, seconds, self._mixture(service), rng, self._args.grace)
        return {"load": "open", "part_of_capacity": part, "requests_per_s": rate} | self._put(service, run)

    def _mixture(self, service: RunningService) -> Mixture:
        previews = 0.0 if service.name == PIPELINE else self._args.previews
        return Mixture(self._args.steps, previews, np.random.default_rng(0))

    def _put(self, service: RunningService, run: Callable[[], Awaitable[list[Outcome]]]) -> Report:
        memory: list[tuple[float, int]] = []

        async def watched() -> list[Outcome]:
            async def watch() -> None:
                while service.runs:
                    memory.append((time.perf_counter() - begin, service.memory_bytes()))
                    await asyncio.sleep(1.0)

            watching = asyncio.create_task(watch())
            try:
                return await run()
            finally:
                watching.cancel()

        cpu, begin = service.cpu_seconds(), time.perf_counter()
        outcomes = asyncio.run(watched())
        wall_s = time.perf_counter() - begin
        if not service.runs:
            raise VerificationError(f"the service {service.name} ended under load (a bug: please report it)")
        found = summarize(outcomes, {} if service.name == PIPELINE else self._expected, wall_s)
        later = memory[len(memory) // 4 :]  # first come the buffers
        slope = slope_per_minute([when for when, _ in later], [value for _, value in later])
        return {
            "service": service.name,
            **found,
            "cpu_s_per_image": (service.cpu_seconds() - cpu) / max(1, found["answered"]),
            "memory_mib": [memory[0][1] / 2**20, memory[-1][1] / 2**20],
            "memory_kib_per_minute": None if slope is None else slope / 1024,
            "load_average_1min": round(os.getloadavg()[0], 2),
        }


def benchmark(args: argparse.Namespace, argv: Sequence[str] | None) -> Report:
    """Run the command; return its report."""
    for module in ("fastapi", "uvicorn", "prometheus_client", "httpx"):
        require_module(module)
    if PIPELINE in args.services and args.checkpoint is None:
        raise InputError(f"the service {PIPELINE} runs a checkpoint; give --checkpoint")
    names = [REFERENCE, *(name for name in args.services if name != REFERENCE)]
    measurement = Measurement(args, expected_images(args.engine, args.steps, args.slots))
    facts = measurement_facts(PROG, argv)
    report: Report = {"format": 1, **facts, "slots": args.slots, "steps": args.steps, "seconds": args.seconds}
    results: list[Report] = []

    def keep(entry: Report) -> None:
        results.append(entry)
        say(line_of(entry))

    with contextlib.ExitStack() as stack:
        services = []
        for name in names:
            services.append(RunningService(name, args.engine, args.checkpoint, args.slots))
            stack.callback(services[-1].stop)
        for service in services:  # whatever is made at the first request
            measurement.closed(service, 2, min(1.0, args.seconds))
        capacity = measurement.closed(services[0], _CAPACITY_CLIENTS, args.seconds)["images_per_s"]
        report["capacity_per_s"] = capacity
        for clients in args.clients:
            for service in services:
                keep(measurement.closed(service, clients, args.seconds))
        for part in args.parts:
            for service in services:
                keep(measurement.open(service, part, capacity, args.seconds))
        if args.memory_minutes:
            keep(measurement.open(services[0], 0.8, capacity, 60.0 * args.memory_minutes))
    report["results"] = results
    lines = [f"{capacity:.1f} images/s at most", *map(line_of, results), *write_report(report, args.out)]
    for entry in results:
        if entry["service"] != PIPELINE and (entry["lost"] or entry["doubled"] or entry["wrong"]):
            raise VerificationError(f"{line_of(entry)}: lost, doubled or wrong images (a bug: please report it)")
    return report | {"summary": "\n".join(lines)}


def line_of(entry: Report) -> str:
    """One load, for people."""
    load = f"{entry['clients']} clients" if entry["load"] == "closed" else f"{entry['requests_per_s']:.1f} requests/s"
    p50, p95 = ("longer" if entry[key] is None else f"{entry[key]:.3f} s" for key in ("p50_s", "p95_s"))
    return (
        f"{load}, {entry['service']}: {entry['images_per_s']:.1f} images/s, p50 {p50}, p95 {p95}, "
        f"{1e3 * entry['cpu_s_per_image']:.1f} CPU ms an image; lost {entry['lost']}, doubled {entry['doubled']}, "
        f"wrong {entry['wrong']} of {entry['checked']}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(PROG, "Put the service under load, beside static batches and diffusers' pipeline.")
    parser.add_argument("--engine", type=Path, default=Path("unet.onnx"), help="for our services (default: unet.onnx)")
    parser.add_argument("--checkpoint", type=Path, help="the folder that diffusers' pipeline runs (default: none)")
    parser.add_argument("--services", nargs="*", choices=SERVICES, default=["static"], help="beside the slots")
    parser.add_argument("--slots", type=positive, default=8, help="default: 8")
    parser.add_argument("--steps", type=positive, nargs="+", default=[20, 100], help="of requests (default: 20 100)")
    parser.add_argument(
        "--clients", type=_clients, nargs="+", default=[1, 8, 64, 512], help="at once (default: 1 8 64 512)"
    )
    parser.add_argument(
        "--parts", type=_part, nargs="*", default=[0.5, 0.8, 0.95], help="of the capacity (default: 0.5 0.8 0.95)"
    )
    parser.add_argument("--seconds", type=_seconds, default=20.0, help="of each load (default: 20)")
    parser.add_argument("--grace", type=_seconds, default=10.0, help="seconds for the last answers (default: 10)")
    parser.add_argument("--previews", type=_part, default=0.1, help="part of the requests that are watched (0.1)")
    parser.add_argument(
        "--memory-minutes", type=_seconds, help="of one more load, of the slots, at 0.8 (default: none)"
    )
    parser.add_argument("--out", type=report_file, help="also write the report to this JSON file")
    return run_program(parser, lambda args: benchmark(args, argv), argv)


def _clients(text: str) -> int:
    value = positive(text)
    if value > _MOST_CLIENTS:
        raise argparse.ArgumentTypeError(f"found {text}, expected at most {_MOST_CLIENTS}")
    return value


def _part(text: str) -> float:
    return _number(text, 1.0)


def _seconds(text: str) -> float:
    return _number(text, 3600.0)


def _number(text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(f"found {text[:40]!r}, expected more than 0 and at most {most:g}")
    return value


if __name__ == "__main__":
    raise SystemExit(main())
