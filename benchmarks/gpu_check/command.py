"""The command line of the check, for a machine with an NVIDIA GPU.

Exit codes: 0 if nothing that was checked is wrong, whatever the figures; 3 if something is; 4 without a GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.device.command import WORK_FOLDER
from benchmarks.device.kernels_build import ROOT
from benchmarks.gpu_check import report as reports
from benchmarks.gpu_check.borrowed import bring_back, install_wheels
from benchmarks.gpu_check.stage_runner import Entry, StageRunner, exit_code
from benchmarks.gpu_check.stages import LONG, LONG_MINUTES, SHORT, SHORT_MINUTES, Stage, choose_stages
from benchmarks.measurement import measurement_facts
from commands.errors import EXIT_VERIFICATION, DeviceUnavailableError
from commands.program import Report, make_parser, run_program
from diffusion.errors import InputError

PROG = "benchmarks.gpu_check"
DEFAULT_OUT = ROOT / "benchmarks" / "results"


def check(args: argparse.Namespace, argv: Sequence[str] | None) -> Report:
    """Run the stages; the report's `exit_code` says whether what was proven holds.

    Raises:
        InputError: an unknown stage, a report that cannot be written, wheels that cannot be installed.
        DeviceUnavailableError: no NVIDIA driver or no GPU, or a module is missing; nothing was built.
    """
    begin = time.monotonic()
    long: bool = args.long
    name = "gpu-check-long" if long else "gpu-check"
    out: Path = args.out or DEFAULT_OUT / f"{name}.json"
    minutes: float = (LONG_MINUTES if long else SHORT_MINUTES) if args.minutes is None else args.minutes
    if not 0 < minutes < float("inf"):
        raise InputError(f"--minutes is {minutes}, expected a positive number")
    stages = choose_stages(LONG if long else SHORT, args.stages)
    if args.wheels is not None:
        install_wheels(args.wheels, args.work_folder)
    head = {**measurement_facts(PROG, argv), **find_gpu(name, args.machine), "minutes": minutes}
    expect_tests(stages)

    def publish(entries: list[Entry], finished: bool = False) -> dict[str, Any]:
        report = reports.write_report(out, head, entries, finished)
        if args.bring_back is not None:
            bring_back(args.bring_back, out, args.work_folder)
        return report

    runner = StageRunner(args.work_folder, 60.0 * minutes - (time.monotonic() - begin), args.machine)
    entries = runner.run(stages, publish)
    report = publish(entries, finished=True)
    lines = [
        f"{head['gpu']['name']}, driver {head['driver']}, commit {head['commit']}",
        *reports.table(entries),
        str(out),
    ]
    return report | {"summary": "\n".join(lines), "exit_code": exit_code(entries, EXIT_VERIFICATION)}


def find_gpu(what: str, machine: str) -> dict[str, Any]:
    """What the driver says of itself and of the first GPU.

    Args:
        what: needs it, for the error.
        machine: a class that stands for the GPU; "" for none.

    Raises:
        DeviceUnavailableError: no driver, no GPU, or a Python without the few modules that everything here needs.
    """
    if machine:
        return {"gpu": {"name": f"no GPU: {machine}"}, "driver": None, "driver_cuda_version": None}
    remedy = "run it on a machine with one"
    try:
        from runtime.device.driver import driver_facts, require_gpu
    except ModuleNotFoundError as error:
        try:  # that there is no GPU comes first, whatever else is missing
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            missing = "no NVIDIA driver (libcuda.so.1 is not found)"
            raise DeviceUnavailableError(f"{what}: no NVIDIA GPU found: {missing}; {remedy}") from error
        raise DeviceUnavailableError(
            f"{what}: {sys.executable} has no module {error.name!r}; install it, or choose another Python: "
            "`make gpu-check PYTHON=…`"
        ) from error
    driver = driver_facts()
    gpu = require_gpu(driver, what, remedy)
    return {"gpu": vars(gpu), "driver": driver.version, "driver_cuda_version": driver.cuda_version}


def expect_tests(stages: Sequence[Stage]) -> None:
    """Refuse to start where nothing would be proven.

    Raises:
        InputError: the tests are not here.
        DeviceUnavailableError: stages need pytest, and it is not installed.
    """
    tests = [stage.name for stage in stages if stage.tests]
    if not (ROOT / "tests" / "gpu").is_dir():
        raise InputError(f"{ROOT} holds no tests/gpu: run this in a checkout of the project, not from a wheel")
    if tests and importlib.util.find_spec("pytest") is None:
        raise DeviceUnavailableError(
            f"{sys.executable} has no module 'pytest', which the stages {', '.join(tests)} need; install it, or carry "
            "wheels of pytest, pluggy, iniconfig, packaging and pygments: `--wheels FOLDER`"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(PROG, "Check and measure everything that this project claims of an NVIDIA GPU.")
    parser.add_argument("--long", action="store_true", help="other batches, all timesteps, other engines: an hour")
    parser.add_argument("--stages", nargs="+", metavar="NAME", help="only these, and the build where they need it")
    parser.add_argument("--minutes", type=float, help=f"for everything (default: {SHORT_MINUTES:g}, or an hour)")
    parser.add_argument("--out", type=Path, help="the report (default: benchmarks/results/gpu-check[-long].json)")
    parser.add_argument(
        "--work-folder", type=Path, default=WORK_FOLDER, help="for builds, logs and caches (build/gpu-check)"
    )
    parser.add_argument(
        "--wheels", type=Path, metavar="FOLDER", help="install these first, offline, into --work-folder"
    )
    parser.add_argument(
        "--bring-back", type=Path, metavar="FOLDER", help="copy report, logs and compile cache there after each stage"
    )
    # Of the rehearsal, tests/gpu/rehearsal.py: a class that stands for the GPU.
    parser.add_argument("--machine", default="", help=argparse.SUPPRESS)
    codes: list[int] = []

    def run(args: argparse.Namespace) -> Report:
        result = check(args, argv)
        codes.append(result["exit_code"])
        return result

    code = run_program(parser, run, argv)
    return code or (codes[0] if codes else 0)
