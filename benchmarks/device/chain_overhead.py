"""What the chain on the GPU costs beyond its network.

One side launches the network's own captured graph as often as the chain has steps, back to back; the other is the
chain. Both are timed by CUDA events on the same stream, by turns, without waiting for anything in between.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.device.figures import overhead, rounds_within
from benchmarks.device.findings import Findings
from benchmarks.device.gpu_machine import GpuMachine
from benchmarks.device.timing import StreamTimer
from diffusion.errors import InputError
from diffusion.samplers import make_table
from runtime.chain.device import DeviceChain
from runtime.chain.launchers import GRAPH_KINDS, ROWS_PER_TURN
from runtime.device.interface import DeviceEngine

NUM_STEPS = 50
GOAL_US, GOAL_RATIO = 8.0, 1.02
MAX_ROUNDS = 21
OTHER_TURNS = (1, 2, 8, 16)
"""Rows in a turn of the loop, beside the default: measured where turns cost most, at batch 1."""
_SECONDS_PER_BATCH = 6.0


def run(machine: GpuMachine, findings: Findings, batch_sizes: Sequence[int], precision: str = "bf16") -> None:
    """Measure several batches.

    Args:
        machine: whose network it is.
        findings: for what is found.
        batch_sizes: N of each chain.
        precision: of the network.
    """
    engine = machine.engine(precision)
    findings.record("engine", engine.name)
    findings.add("lines", f"{engine.name}, {NUM_STEPS} steps; milliseconds a step, nodes of a network call")
    findings.add(
        "lines",
        f"{'batch':>5} {'network':>9} {'loop':>9} {'us more':>8} {'ratio':>8} {'step graph':>10} {'us more':>8} "
        f"{'no graph':>9} {'nodes':>6}",
    )
    for batch_size in batch_sizes:
        machine.forget_memory()  # what the last batch's chains used lies on streams that are gone
        try:
            entry = measure(machine, engine, batch_size)
        except (InputError, RuntimeError) as error:  # another GPU may have less memory; other batches may still do
            findings.add("batches", {"batch_size": batch_size, "left_out": str(error)})
            continue
        findings.add("batches", entry)
        findings.add("lines", _line(entry))
        # A sampler keeps the faster of the two.
        chain = min(entry["while"], entry["step"], key=lambda one: one["chain_ms_per_step"])
        if batch_size == 1:
            findings.target("chain over network at batch 1, µs a step", chain["us_per_step"], GOAL_US, at_least=False)
        elif batch_size >= 8:
            findings.target(f"chain / network at batch {batch_size}", chain["ratio"], GOAL_RATIO, at_least=False)


def measure(machine: GpuMachine, engine: DeviceEngine, batch_size: int) -> dict[str, Any]:
    """Time the network alone and every way to launch a chain, by turns."""
    kernels = machine.kernels
    table = make_table(engine.process, num_steps=NUM_STEPS)
    chains: dict[str, DeviceChain] = {}
    with contextlib.ExitStack() as undo:
        for kind in GRAPH_KINDS:
            chains[kind] = undo.enter_context(contextlib.closing(DeviceChain(engine, table, batch_size, graph=kind)))
        for turn in OTHER_TURNS if batch_size == 1 else ():
            name = f"while, {turn} rows a turn"
            chain = DeviceChain(engine, table, batch_size, graph="while", rows_per_turn=turn)
            chains[name] = undo.enter_context(contextlib.closing(chain))
        stream = chains["while"].stream
        network = chains["while"].call.graph(stream)
        if network is None:
            raise RuntimeError("the network's call was not captured")
        nodes = kernels.cuda_graph_node_types(network)
        executable = kernels.cuda_graph_instantiate(network)
        undo.callback(kernels.cuda_graph_executable_destroy, executable)
        kernels.cuda_graph_upload(executable, stream)

        def network_alone() -> None:
            for _ in range(NUM_STEPS):
                kernels.cuda_graph_launch(executable, stream)

        def chain_ms(chain: DeviceChain) -> float:
            chain.begin([0] * batch_size, range(batch_size))  # x_T is drawn before
            return timer.milliseconds(chain.stream, lambda: chain.enqueue(chain.rows_left))

        timer = undo.enter_context(StreamTimer(kernels, machine.memory))
        sides: dict[str, Callable[[], float]] = {"network": lambda: timer.milliseconds(stream, network_alone)}
        sides |= {name: functools.partial(chain_ms, chain) for name, chain in chains.items()}
        milliseconds: dict[str, list[float]] = {name: [] for name in sides}
        for run_side in sides.values():  # warm up
            run_side()
        seconds_each = sum(run_side() for run_side in sides.values()) / 1e3
        rounds = rounds_within(seconds_each, _SECONDS_PER_BATCH, MAX_ROUNDS)
        for _ in range(rounds):
            for name, run_side in sides.items():
                milliseconds[name].append(run_side())
    entry: dict[str, Any] = {"batch_size": batch_size, "steps": NUM_STEPS, "rounds": rounds}
    entry |= {"nodes": nodes, "rows_per_turn": ROWS_PER_TURN}
    for kind, chain in chains.items():
        entry[kind] = asdict(overhead(milliseconds["network"], milliseconds[kind], NUM_STEPS))
        entry[kind] |= {"used": chain.graph, "fall_backs": chain.fall_backs}
    return entry


def _line(entry: dict[str, Any]) -> str:
    loop, single = entry["while"], entry["step"]
    return (
        f"{entry['batch_size']:5d} {loop['network_ms_per_step']:9.4f} {loop['chain_ms_per_step']:9.4f} "
        f"{loop['us_per_step']:8.2f} {loop['ratio']:8.4f} {single['chain_ms_per_step']:10.4f} "
        f"{single['us_per_step']:8.2f} {entry['none']['chain_ms_per_step']:9.4f} {sum(entry['nodes'].values()):6d}"
    )
