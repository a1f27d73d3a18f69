"""Sampling as a user waits for it: from the draw of x_T until the images can be read, beside the fastest peers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.device.compile_cache import load_compile_cache, save_compile_cache
from benchmarks.device.figures import median_ratio, rounds_within
from benchmarks.device.findings import Findings
from benchmarks.device.gpu_machine import GRAPH_LOOP, PIPELINE, GpuMachine
from benchmarks.device.network_error import TOLERANCES, largest_error
from benchmarks.measurement import time_alternately
from diffusion.samplers import make_table
from runtime.chain.device import DeviceChain
from runtime.device.interface import DeviceEngine

NUM_STEPS = 50
OURS = "ours"
GOALS = {GRAPH_LOOP: 1.0, PIPELINE: 1.3}
"""At batch 1, where launches cost most. Against the first, which runs the same kernels, what is saved is microseconds a
step: 5 % would need a network that takes less than 0.12 ms."""
CASES = (("bf16", 1), ("bf16", 64), ("fp32", 1))
_SECONDS_PER_PEER = 8.0


class ChainSampler:
    """Our chain as a call.

    Args:
        engine: the network.
        batch_size: N.
        num_steps: of the chain.
    """

    def __init__(self, engine: DeviceEngine, batch_size: int, num_steps: int = NUM_STEPS) -> None:
        self.batch_size = batch_size
        # As diffusers chooses timesteps, which end at 0.
        table = make_table(engine.process, num_steps=num_steps, spacing="leading")
        self.chain = DeviceChain(engine, table, batch_size)

    def __call__(self) -> None:
        self.chain.begin([0] * self.batch_size, range(self.batch_size))
        self.chain.run()
        _ = self.chain.x

    def close(self) -> None:
        """Give its memory back."""
        self.chain.close()


def run_compiled(machine: GpuMachine, findings: Findings, batch_size: int, precision: str = "bf16") -> None:
    """Our chain with torch.compile's kernels beside the fastest loops around them; nothing is timed that is wrong.

    Args:
        machine, findings: as everywhere.
        batch_size: N of every chain.
        precision: of the network.
    """
    engine = machine.engine(precision, compiled=True)
    if not machine.is_software:
        findings.record("compile_cache_bytes_loaded", load_compile_cache(machine.torch, machine.work_folder))
    begin = time.monotonic()
    error = largest_error(engine, machine.reference(), batch_size)
    findings.record("compile_seconds", round(time.monotonic() - begin, 1))
    findings.record("prediction_error", error)
    tolerance = TOLERANCES[precision]
    if not findings.check(
        f"compiled predictions within {tolerance:g} of the CPU's", error <= tolerance, f"{error:.2e}"
    ):
        return
    keep_compiled(machine, findings)
    compare(machine, findings, engine, batch_size, compiled=True)


def keep_compiled(machine: GpuMachine, findings: Findings) -> None:
    """Write what was compiled up to now; compilers of peers may use up the time."""
    if not machine.is_software:
        findings.record("compile_cache_bytes", save_compile_cache(machine.torch, machine.work_folder))


def run_eager(machine: GpuMachine, findings: Findings, cases: Sequence[tuple[str, int]] = CASES) -> None:
    """Our chain with PyTorch's kernels beside diffusers' eager pipeline.

    Args:
        machine, findings: as everywhere.
        cases: (precision, batch size).
    """
    for precision, batch_size in cases:
        compare(machine, findings, machine.engine(precision), batch_size, compiled=False)


def compare(machine: GpuMachine, findings: Findings, engine: DeviceEngine, batch_size: int, compiled: bool) -> None:
    """Time our chain and every peer by turns: same weights, precision and number of steps."""
    ours = ChainSampler(engine, batch_size)
    try:
        call = ours.chain.call.graph(ours.chain.stream)
        nodes = {} if call is None else machine.kernels.cuda_graph_node_types(call)
        facts = {"engine": engine.name, "batch_size": batch_size, "steps": NUM_STEPS, "nodes": nodes}
        findings.add("lines", f"{engine.name}, batch {batch_size}: a network call launches {sum(nodes.values())} nodes")
        for name, make in machine.peers(engine, batch_size, NUM_STEPS, compiled).items():
            begin = time.monotonic()
            try:
                # A compiler may give up, in whatever way; the other peers are measured all the same.
                samplers: dict[str, Any] = {name: make(), OURS: ours}
                rounds = rounds_for(samplers, _SECONDS_PER_PEER)
                seconds = time_alternately(samplers, rounds, warmup=0)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"[:1000]
                findings.add("comparisons", {**facts, "peer": name, "left_out": reason})
                findings.add("lines", f"{name}: left out, {reason[:100]}")
                continue
            results = compare_seconds(seconds, OURS, batch_size)
            entry = {**facts, "peer": name, "rounds": rounds, "seconds": round(time.monotonic() - begin, 1)}
            entry |= {"graph": ours.chain.graph, "fall_backs": ours.chain.fall_backs, "results": results}
            entry["us_saved_per_step"] = 1e3 * (results[name]["ms_per_step"] - results[OURS]["ms_per_step"])
            findings.add("comparisons", entry)
            for line in comparison_lines(results, batch_size):
                findings.add("lines", line)
            findings.add("lines", f"{entry['us_saved_per_step']:.1f} us a step saved, launched as {entry['graph']}")
            if compiled:
                keep_compiled(machine, findings)
            if batch_size == 1 and compiled and name in GOALS:
                findings.target(f"{name} / ours", results[name]["ours_is_faster"], GOALS[name], at_least=True)
    finally:
        ours.close()


def run_full_chain(machine: GpuMachine, findings: Findings, cases: Sequence[tuple[str, int]] = CASES) -> None:
    """Chains of all timesteps, as `runtime.sample` runs them: in chunks, to images that are finite."""
    for precision, batch_size in cases:
        engine = machine.engine(precision)
        table = make_table(engine.process)
        chain = DeviceChain(engine, table, batch_size)
        try:
            for _ in range(2):  # the first warms up
                chain.begin([0] * batch_size, range(batch_size))
                begin = time.perf_counter()
                chain.run()
                seconds = time.perf_counter() - begin
            finite = bool(chain.finite().all())
        finally:
            chain.close()
        name = f"{precision}, batch {batch_size}, {len(table)} steps"
        findings.check(f"{name}: finite", finite)
        entry: dict[str, Any] = {"precision": precision, "batch_size": batch_size, "steps": len(table)}
        entry |= {"engine": engine.name, "seconds": seconds, "images_per_second": batch_size / seconds}
        entry |= {"graph": chain.graph, "fall_backs": chain.fall_backs, "ms_per_step": 1e3 * seconds / len(table)}
        findings.add("chains", entry)
        findings.add("lines", f"{name}: {seconds:.3f} s, {entry['images_per_second']:.2f} images/s, {chain.graph}")


def rounds_for(samplers: dict[str, Any], budget_seconds: float, most: int = 15) -> int:
    """Run everything twice, to warm up and to see how long it takes; how many rounds fit into the budget."""
    seconds = 0.0
    for sample in samplers.values():
        sample()
        begin = time.perf_counter()
        sample()
        seconds += time.perf_counter() - begin
    return rounds_within(seconds, budget_seconds, most)


def compare_seconds(
    seconds: dict[str, list[float]], ours: str, batch_size: int, num_steps: int = NUM_STEPS
) -> dict[str, dict[str, float]]:
    """By name: milliseconds a step, images a second, and how many times faster ours is."""
    medians = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    return {
        name: {
            "ms_per_step": 1e3 * medians[name] / num_steps,
            "ms_per_step_min": 1e3 * min(seconds[name]) / num_steps,
            "ms_per_step_max": 1e3 * max(seconds[name]) / num_steps,
            "images_per_second": batch_size / medians[name],
            "ours_is_faster": median_ratio(seconds[name], seconds[ours]),
        }
        for name in seconds
    }


def comparison_lines(results: dict[str, dict[str, float]], batch_size: int) -> list[str]:
    """For the printed table."""
    return [
        f"{name:48} batch {batch_size:3d} {entry['ms_per_step']:9.4f} ms/step "
        f"{entry['images_per_second']:9.2f} images/s, ours is {entry['ours_is_faster']:.2f}x"
        for name, entry in results.items()
    ]
