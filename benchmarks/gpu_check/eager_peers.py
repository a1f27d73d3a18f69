"""Our chain with PyTorch's network beside diffusers' eager pipeline: same weights, precision and number of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu_check.cifar_network import checkpoint_folder, device_engine, has_diffusers
from benchmarks.gpu_check.context import StageContext
from benchmarks.gpu_check.facts_stage import import_torch
from benchmarks.gpu_check.wall_clock import NUM_STEPS, ChainSampler, compare_seconds, comparison_lines, rounds_for
from benchmarks.measurement import time_alternately
from runtime.device.interface import DeviceEngine

CASES = (("bf16", 1), ("bf16", 64), ("fp32", 1))
OURS = "ours, PyTorch's kernels"
_SECONDS_PER_CASE = 6.0


def run(context: StageContext, cases: Sequence[tuple[str, int]] = CASES) -> None:
    """The stage.

    Args:
        context: of the stage.
        cases: (precision, batch size).
    """
    import_torch()
    lines: list[str] = []
    for precision, batch_size in cases:
        engine = device_engine(context, precision)
        theirs, sampler = eager_peer(context, engine, precision, batch_size)
        ours = ChainSampler(engine, batch_size)
        samplers: dict[str, Callable[[], Any]] = {theirs: sampler, OURS: ours}
        try:
            rounds = rounds_for(samplers, _SECONDS_PER_CASE)
            results = compare_seconds(time_alternately(samplers, rounds, warmup=0), OURS, batch_size)
        finally:
            ours.close()
        entry = {"precision": precision, "batch_size": batch_size, "steps": NUM_STEPS, "rounds": rounds}
        context.add("comparisons", {**entry, "engine": engine.name, "results": results})
        lines += comparison_lines(results, batch_size)
        context.record("lines", lines)


def eager_peer(
    context: StageContext, engine: DeviceEngine, precision: str, batch_size: int
) -> tuple[str, Callable[[], Any]]:
    """diffusers' pipeline, or where it is not installed the same loop in PyTorch; its name says which."""
    if has_diffusers():
        from benchmarks.gpu_check.diffusers_peer import DiffusersSampler

        folder = checkpoint_folder(context.work_folder)
        return f"diffusers, eager {precision}", DiffusersSampler(folder, precision, batch_size, NUM_STEPS, False)
    from benchmarks.gpu_check.plain_unet import random_plain_unet
    from benchmarks.gpu_check.torch_loops import PlainLoop
    from runtime.engines.torch_call import TORCH_TYPES

    kind = TORCH_TYPES[precision]
    network = random_plain_unet().to("cuda", kind)
    name = f"PyTorch loop, eager {precision} (no diffusers here)"
    return name, PlainLoop(network, engine.process, batch_size, NUM_STEPS, kind)
