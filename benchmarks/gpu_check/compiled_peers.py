"""Our chain with the network that torch.compile makes, beside the fastest loops around it.

The strongest peer runs the very same compiled network, with noise and update inside its CUDA graph. What takes longest
comes last, and what was measured until then is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu_check.cifar_network import PROCESS, checkpoint_folder, device_engine, has_diffusers
from benchmarks.gpu_check.context import StageContext
from benchmarks.gpu_check.facts_stage import import_torch
from benchmarks.gpu_check.wall_clock import NUM_STEPS, ChainSampler, compare_seconds, comparison_lines, rounds_for
from benchmarks.measurement import time_alternately

OURS = "ours, torch.compile's kernels"
GRAPH_LOOP = "hand-written PyTorch graph loop, same kernels"
PIPELINE = "diffusers + torch.compile(max-autotune)"
COMPILED_LOOP = "PyTorch loop + torch.compile(max-autotune)"
GOALS = {GRAPH_LOOP: 1.05, PIPELINE: 1.3}
_SECONDS_PER_PEER = 8.0


def run(context: StageContext, batch_size: int, precision: str = "bf16") -> None:
    """The stage.

    Args:
        context: of the stage.
        batch_size: N of every chain.
        precision: of the network.
    """
    import_torch()
    engine = device_engine(context, precision, compiled=True)
    context.record("engine", engine.name)
    context.record("batch_size", batch_size)
    begin = time.monotonic()
    ours = ChainSampler(engine, batch_size)
    context.record("compile_seconds", round(time.monotonic() - begin, 1))
    context.record("graph", ours.chain.graph)
    context.record("fall_backs", ours.chain.fall_backs)
    call = ours.chain.call.graph(ours.chain.stream)
    if call is not None:
        context.record("nodes", context.kernels.cuda_graph_node_types(call))
    lines: list[str] = []
    for name, make in peers(context, batch_size, precision).items():
        begin = time.monotonic()
        try:
            # A compiler may give up, in whatever way; the other peers are measured all the same.
            peer = make(engine)
            samplers: dict[str, Callable[[], Any]] = {name: peer, OURS: ours}
            rounds = rounds_for(samplers, _SECONDS_PER_PEER)
            seconds = time_alternately(samplers, rounds, warmup=0)
        except Exception as error:
            context.add("comparisons", {"peer": name, "left_out": f"{type(error).__name__}: {error}"[:1000]})
            continue
        results = compare_seconds(seconds, OURS, batch_size)
        entry = {"peer": name, "steps": NUM_STEPS, "rounds": rounds, "seconds": round(time.monotonic() - begin, 1)}
        context.add("comparisons", {**entry, "results": results})
        lines += comparison_lines(results, batch_size)
        context.record("lines", lines)
        # The goals are for one image at a time, where launches cost most.
        if batch_size == 1 and name in GOALS:
            context.target(f"{name} / ours", results[name]["ours_is_faster"], GOALS[name], at_least=True)


def peers(context: StageContext, batch_size: int, precision: str) -> dict[str, Callable[[Any], Callable[[], Any]]]:
    """By name: makes the peer from our engine."""
    from benchmarks.gpu_check.torch_loops import GraphLoop

    found: dict[str, Callable[[Any], Callable[[], Any]]] = {
        GRAPH_LOOP: lambda engine: GraphLoop(engine, batch_size, NUM_STEPS)
    }
    if has_diffusers():
        from benchmarks.gpu_check.diffusers_peer import DiffusersSampler

        folder = checkpoint_folder(context.work_folder)
        found[PIPELINE] = lambda _: DiffusersSampler(folder, precision, batch_size, NUM_STEPS, True)
    found[COMPILED_LOOP] = lambda _: _compiled_loop(batch_size, precision)
    return found


def _compiled_loop(batch_size: int, precision: str) -> Callable[[], Any]:
    """Eager noise and update around a network in CUDA graphs of torch.compile's own."""
    import torch

    from benchmarks.gpu_check.plain_unet import random_plain_unet
    from benchmarks.gpu_check.torch_loops import PlainLoop
    from runtime.engines.torch_call import TORCH_TYPES

    kind = TORCH_TYPES[precision]
    network = random_plain_unet().to("cuda", kind).to(memory_format=torch.channels_last)
    compiled = torch.compile(network, mode="max-autotune", dynamic=False)
    return PlainLoop(compiled, PROCESS, batch_size, NUM_STEPS, kind)
