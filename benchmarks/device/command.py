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
from commands.program import make_parser
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


def measure(place: str, arguments: dict[str, object], machine: str, work_folder: Path, out: Path | None) -> str:
    """Run one function; return its status.

    Args:
        place: of the function, as `named` takes it.
        arguments: for it, by name.
        machine: the class of the machine, as `named` takes it.
        work_folder: for what is built and kept.
        out: for the findings; None to print them.
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
    if out is None:
        print(json.dumps(final, indent=1, allow_nan=False))
    status: str = final["status"]
    return status


def leave(code: int) -> NoReturn:
    """End the process at once: its work is written, and libraries may wait minutes for threads of theirs."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; it ends the process."""
    parser: argparse.ArgumentParser = make_parser(PROG, "Measure one thing on the NVIDIA GPU that is here.")
    parser.add_argument("name", choices=MEASUREMENTS, help="what to measure; `build` compiles the kernels, first")
    parser.add_argument("--out", type=Path, help="JSON file for the findings (default: they are printed)")
    parser.add_argument("--work-folder", type=Path, default=WORK_FOLDER, help="for builds and caches (build/gpu-check)")
    args = parser.parse_args(argv)
    place, arguments = MEASUREMENTS[args.name]
    machine = os.environ.get("DDPM_RT_GPU_MACHINE", MACHINE)
    status = measure(f"benchmarks.device.{place}", arguments, machine, args.work_folder.resolve(), args.out)
    leave(0 if status in ("passed", "skipped") else 3)
