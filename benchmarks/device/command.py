"""The command line of one measurement: `python -m benchmarks.device overhead`.

`benchmarks.gpu_check` starts each measurement so, in a process of its own: what it loads, breaks or hangs on stays in
it. The findings are written to a file, whole, whenever there are new ones.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from benchmarks.device.findings import Findings, SkippedError
from benchmarks.device.kernels_build import ROOT
from commands.errors import EXIT_DONE, EXIT_VERIFICATION
from commands.program import Report, make_parser, run_program
from commands.whole_files import write_whole_text

PROG = "benchmarks.device"
WORK_FOLDER = ROOT / "build" / "gpu-check"
MACHINE = "benchmarks.device.gpu_machine:GpuMachine"

MEASUREMENTS: dict[str, tuple[str, dict[str, object]]] = {
    "build": ("facts:build", {}),
    "bandwidth": ("step_bandwidth:run", {}),
    "overhead": ("chain_overhead:run", {"batch_sizes": (1,)}),
    "overhead-batches": ("chain_overhead:run", {"batch_sizes": (8, 64, 256)}),
    "overhead-more": ("chain_overhead:run", {"batch_sizes": (2, 4, 16, 32, 128, 512)}),
    "compiled": ("wall_clock:run_compiled", {"batch_size": 1}),
    "compiled-8": ("wall_clock:run_compiled", {"batch_size": 8}),
    "compiled-64": ("wall_clock:run_compiled", {"batch_size": 64}),
    "eager": ("wall_clock:run_eager", {}),
    "full-chain": ("wall_clock:run_full_chain", {}),
    "tensorrt": ("tensorrt_modules:run", {}),
    "onnx": ("engine_files:run_onnx", {}),
    "tensorrt-plans": ("engine_files:run_tensorrt", {}),
}
"""By name: a function of this package, which takes a `GpuMachine` and `Findings`, and its other arguments."""


def named(place: str) -> Callable[..., object]:
    """The object that `module:name` names."""
    module, _, name = place.partition(":")
    found: Callable[..., object] = getattr(importlib.import_module(module), name)
    return found


def measure(place: str, arguments: dict[str, object], machine: str, work_folder: Path, out: Path | None) -> Report:
    """Run one function; return its findings, with the status.

    Args:
        place: of the function, as `named` takes it.
        arguments: for it, by name.
        machine: the class of the machine, as `named` takes it.
        work_folder: for what is built and kept.
        out: for the findings; None for nowhere.
    """

    def publish(found: dict[str, object]) -> None:
        if out is not None:
            write_whole_text(out, json.dumps({"status": "running", **found}, allow_nan=False))

    findings = Findings(publish)
    try:
        named(place)(named(machine)(work_folder), findings, **arguments)
    except SkippedError as error:
        final = findings.ended("skipped", str(error))
    except Exception as error:
        traceback.print_exc()
        final = findings.ended("error", f"{type(error).__name__}: {error}")
    else:
        final = findings.ended("passed")
    return final


def leave(code: int) -> NoReturn:
    """End the process at once: its work is written, and libraries may wait minutes for threads of theirs."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Once it has measured it ends the process; else it returns the exit code."""
    parser = make_parser(PROG, "Measure one thing on the NVIDIA GPU that is here.")
    parser.add_argument("name", choices=MEASUREMENTS, help="what to measure; `build` compiles the kernels, first")
    parser.add_argument("--out", type=Path, help="JSON file for the findings (default: they are printed)")
    parser.add_argument("--work-folder", type=Path, default=WORK_FOLDER, help="for builds and caches (build/gpu-check)")
    statuses: list[str] = []

    def run(args: argparse.Namespace) -> Report:
        machine = os.environ.get("DDPM_RT_GPU_MACHINE", "")
        if not machine:
            from runtime.device.driver import driver_facts, require_gpu

            require_gpu(driver_facts(), args.name, "run it on a machine with one")
        place, arguments = MEASUREMENTS[args.name]
        folder, place = args.work_folder.resolve(), f"benchmarks.device.{place}"
        found = measure(place, arguments, machine or MACHINE, folder, args.out)
        statuses.append(found["status"])
        text = json.dumps(found, indent=1, allow_nan=False) if args.out is None else f"{args.out}: {found['status']}"
        return found | {"summary": text}

    code = run_program(parser, run, argv)
    if statuses:
        leave(code or (EXIT_DONE if statuses[0] in ("passed", "skipped") else EXIT_VERIFICATION))
    return code
