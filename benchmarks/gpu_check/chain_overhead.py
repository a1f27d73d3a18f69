"""What the chain on the GPU costs beyond its network.

One side launches the network's own captured graph as often as the chain has steps, back to back; the other is the
chain. Both are timed by CUDA events on the same stream, by turns, without waiting for anything in between.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.gpu_check.cifar_network import device_engine
from benchmarks.gpu_check.context import StageContext
from benchmarks.gpu_check.facts_stage import import_torch
from benchmarks.gpu_check.figures import overhead, rounds_within
from diffusion.errors import InputError
from diffusion.samplers import make_table
from runtime.chain.device import DeviceChain
from runtime.chain.launchers import GRAPH_KINDS, ROWS_PER_TURN
from runtime.device.interface import DeviceEngine
from runtime.device.streams import elapsed_ms

BATCH_SIZES = (1, 8, 64, 256)
NUM_STEPS = 50
GOAL_US, GOAL_RATIO = 8.0, 1.02
MAX_ROUNDS = 21
OTHER_TURNS = (1, 2, 8, 16)
"""Rows in a turn of the loop, beside the default: measured where turns cost most, at batch 1."""
_SECONDS_PER_BATCH = 6.0


def run(context: StageContext, batch_sizes: Sequence[int] = BATCH_SIZES, precision: str = "bf16") -> None:
    """The stage.

    Args:
        context: of the stage.
        batch_sizes: N of each chain.
        precision: of the network.
    """
    torch = import_torch()
    engine = device_engine(context, precision)
    context.record("engine", engine.name)
    lines = [f"{engine.name}, {NUM_STEPS} steps; milliseconds a step"]
    lines += [
        f"{'batch':>5} {'network':>9} {'chain':>9} {'us more':>8} {'ratio':>8} {'step graph':>10} {'no graph':>9}"
    ]
    for batch_size in batch_sizes:
        torch.cuda.empty_cache()  # what the last batch's chains used lies on streams that are gone
        try:
            entry = measure(context, engine, batch_size)
        except (InputError, RuntimeError) as error:  # another GPU may have less memory; other batches may still do
            context.add("batches", {"batch_size": batch_size, "left_out": str(error)})
            continue
        context.add("batches", entry)
        lines.append(_line(entry))
        context.record("lines", lines)
        chain = entry["while"]
        if batch_size == 1:
            context.target("chain over network at batch 1, µs a step", chain["us_per_step"], GOAL_US, at_least=False)
        elif batch_size >= 8:
            context.target(f"chain / network at batch {batch_size}", chain["ratio"], GOAL_RATIO, at_least=False)


def measure(context: StageContext, engine: DeviceEngine, batch_size: int) -> dict[str, Any]:
    """Time the network alone and every way to launch a chain, by turns."""
    kernels = context.kernels
    table = make_table(engine.process, num_steps=NUM_STEPS)
    chains: dict[str, DeviceChain] = {}
    executable = 0
    try:
        for kind in GRAPH_KINDS:
            chains[kind] = DeviceChain(engine, table, batch_size, graph=kind)
        for turn in OTHER_TURNS if batch_size == 1 else ():
            name = f"while, {turn} rows a turn"
            chains[name] = DeviceChain(engine, table, batch_size, graph="while", rows_per_turn=turn)
        chain = chains["while"]
        network = chain.call.graph(chain.stream)
        assert network is not None, "PyTorch's call was not captured"
        nodes = kernels.cuda_graph_node_types(network)
        executable = kernels.cuda_graph_instantiate(network)
        kernels.cuda_graph_upload(executable, chain.stream)

        def network_alone() -> float:
            def launches() -> None:
                for _ in range(NUM_STEPS):
                    kernels.cuda_graph_launch(executable, chain.stream)

            return elapsed_ms(chain.stream, launches)

        sides: dict[str, Callable[[], float]] = {"network": network_alone}
        for kind, one in chains.items():
            sides[kind] = functools.partial(chain_ms, one, batch_size)
        milliseconds: dict[str, list[float]] = {name: [] for name in sides}
        for run_side in sides.values():  # warm up
            run_side()
        seconds_each = sum(run_side() for run_side in sides.values()) / 1e3
        rounds = rounds_within(seconds_each, _SECONDS_PER_BATCH, MAX_ROUNDS)
        for _ in range(rounds):
            for name, run_side in sides.items():
                milliseconds[name].append(run_side())
    finally:
        if executable:
            kernels.cuda_graph_executable_destroy(executable)
        for chain in chains.values():
            chain.close()
    entry: dict[str, Any] = {"batch_size": batch_size, "steps": NUM_STEPS, "rounds": rounds}
    entry |= {"nodes": nodes, "rows_per_turn": ROWS_PER_TURN}
    for kind, chain in chains.items():
        entry[kind] = asdict(overhead(milliseconds["network"], milliseconds[kind], NUM_STEPS))
        entry[kind] |= {"used": chain.graph, "fall_backs": chain.fall_backs}
    return entry


def chain_ms(chain: DeviceChain, batch_size: int) -> float:
    """A whole chain from x_T on, which is drawn before."""
    chain.begin([0] * batch_size, range(batch_size))
    return elapsed_ms(chain.stream, lambda: chain.enqueue(chain.rows_left))


def _line(entry: dict[str, Any]) -> str:
    chain = entry["while"]
    return (
        f"{entry['batch_size']:5d} {chain['network_ms_per_step']:9.4f} {chain['chain_ms_per_step']:9.4f} "
        f"{chain['us_per_step']:8.2f} {chain['ratio']:8.4f} {entry['step']['chain_ms_per_step']:10.4f} "
        f"{entry['none']['chain_ms_per_step']:9.4f}"
    )
