"""How fast the step moves its bytes, against a copy from device to device of the same working set."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.device.device_arrays import DeviceArrays
from benchmarks.device.figures import (
    bandwidth_figures,
    gb_per_s,
    moved_bytes_per_element,
    resident_bytes_per_element,
    samples_beyond_cache,
)
from benchmarks.device.findings import Findings
from benchmarks.device.gpu_machine import GpuMachine
from benchmarks.device.timing import StreamTimer
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from diffusion.samplers import make_table
from runtime.formats.precision import ELEMENT_TYPES

SHAPE = SampleShape(3, 32, 32)
GOAL = 0.85
ROUNDS, LAUNCHES = 11, 10
_WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class Case:
    """A table and a type: one, two or no histories, with noise and without."""

    sampler: str
    prediction_type: str
    held: bool = False
    """Whether the figure is held against the goal."""


CASES = (
    Case("ddpm", "float16", held=True),
    Case("ddim", "float16"),
    Case("dpmpp_sde_2m", "float16", held=True),
    Case("dpmpp_2m", "float16"),
    Case("unipc", "float16", held=True),
    Case("ddpm", "bfloat16"),
    Case("ddpm", "float32"),
)


def run(machine: GpuMachine, findings: Findings) -> None:
    """Measure every case."""
    l2_bytes = int(machine.kernels.cuda_device_facts(0)["l2_bytes"])
    findings.add("lines", f"{'':27} {'B/element':>9} {'GB/s':>7} {'copy':>7} {'share':>6}")
    for case in CASES:
        entry = measure(machine, case, l2_bytes)
        findings.add("cases", entry)
        findings.add(
            "lines",
            f"{entry['name']:27} {entry['bytes_per_element']:9d} {entry['gb_per_s']:7.0f} "
            f"{entry['copy']['gb_per_s']:7.0f} {100 * entry['share']:5.1f}%",
        )
        findings.check(f"{entry['name']}: everything stays finite", entry["broken_samples"] == 0)
        if case.held:
            findings.target(f"step / copy bandwidth, {entry['name']}", entry["share"], GOAL, at_least=True)


def measure(machine: GpuMachine, case: Case, l2_bytes: int) -> dict[str, Any]:
    """Time the step and the copy by turns; milliseconds are of one launch, medians over the rounds."""
    kernels, memory = machine.kernels, machine.memory
    process = Process(SHAPE, NoiseSchedule.make("linear"), variance_type="fixed_large")
    table = make_table(process, case.sampler)
    moved = moved_bytes_per_element(table.histories, case.prediction_type)
    resident = resident_bytes_per_element(table.histories, case.prediction_type)
    elements = SHAPE.num_elements
    num = samples_beyond_cache(l2_bytes, elements, resident)
    copied = num * elements * resident // 2
    small = {
        "coefficients": table.cast(),
        "timesteps": table.timesteps.astype(np.int32),
        "t": np.zeros(num, np.float32),
        "row": np.zeros(num, np.int32),
        "flag": np.zeros(num, np.int32),
        "arrivals": np.zeros(num, np.uint32),
        "seed": np.zeros(num, np.uint64),
        "sample_index": np.arange(num, dtype=np.uint64),
        "draw": np.zeros(num, np.uint32),
    }
    width = ELEMENT_TYPES[case.prediction_type].num_bytes
    sizes = {"x": 4, "prediction": width} | dict.fromkeys(("h1", "h2")[: table.histories], 4)
    if case.prediction_type != "float32":
        sizes["next_input"] = width
    large = {name: memory.allocate(num * elements * size) for name, size in sizes.items()}
    from_, to = memory.allocate(copied), memory.allocate(copied)
    try:
        with DeviceArrays(memory, small) as device, StreamTimer(kernels, memory) as timer:
            stream = device.stream
            normal = {name: device.addresses[name] for name in ("seed", "sample_index", "draw")}
            arguments = {"num_samples": num, "num_elements": elements, "stream": stream, **normal}
            # Real numbers everywhere: a copy of zeros and a step on zeros can be faster.
            for name in ("x", *("h1", "h2")[: table.histories]):
                kernels.cuda_normal_launch(out=large[name], **arguments)
            kernels.cuda_convert_launch(
                x=large["x"], out=large["prediction"], out_type=case.prediction_type,
                num_elements=num * elements, stream=stream,
            )  # fmt: skip
            filled = 4 * num * elements
            for address, place in itertools.product((from_, to), range(0, copied, filled)):
                kernels.cuda_copy(address + place, large["x"], min(filled, copied - place), stream)
            step = kernels.CudaStep(
                **{name: address for name, address in device.addresses.items() if name != "draw"},
                **large,
                num_rows=len(table),
                histories=table.histories,
                learned=False,
                h2_is_x_start=table.h2_is_x_start,
                clip=table.clip,
                num_samples=num,
                num_elements=elements,
                prediction_elements=elements,
                prediction_type=case.prediction_type,
                t_is_int64=False,
            )

            def steps() -> None:
                for _ in range(LAUNCHES):
                    step.launch(stream)

            def copies() -> None:
                for _ in range(LAUNCHES):
                    kernels.cuda_copy(to, from_, copied, stream)

            milliseconds: dict[str, list[float]] = {"step": [], "copy": []}
            for number in range(_WARM_UP_ROUNDS + ROUNDS):
                device.write("row", small["row"])  # the chain begins anew: no launch finds its rows used up
                for name, enqueue in (("step", steps), ("copy", copies)):
                    elapsed = timer.milliseconds(stream, enqueue) / LAUNCHES
                    if number >= _WARM_UP_ROUNDS:
                        milliseconds[name].append(elapsed)
            broken = int(np.count_nonzero(device.read("flag")))
            rows = device.read("row")
    finally:
        for address in (*large.values(), from_, to):
            memory.free(address)
    assert (rows == LAUNCHES).all(), "some samples were not stepped as often as the step was launched"
    step_ms, copy_ms = (statistics.median(milliseconds[name]) for name in ("step", "copy"))
    step_rate, copy_rate = gb_per_s(moved * num * elements, step_ms), gb_per_s(2 * copied, copy_ms)
    return {
        "name": f"{case.sampler}, {case.prediction_type}",
        "histories": table.histories,
        "noise": bool(table.column("s")[:LAUNCHES].any()),
        "num_samples": num,
        "num_elements": elements,
        "bytes_per_element": moved,
        "working_set_bytes": num * elements * resident,
        "l2_bytes": l2_bytes,
        "step_ms": step_ms,
        "gb_per_s": step_rate,
        "step": bandwidth_figures(moved * num * elements, milliseconds["step"]),
        "copy": bandwidth_figures(2 * copied, milliseconds["copy"]),
        "share": step_rate / copy_rate,
        "broken_samples": broken,
    }
