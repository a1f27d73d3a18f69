"""A whole chain of all timesteps, as `runtime.sample` runs it: in chunks, on the GPU, to images that are finite."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.gpu_check.cifar_network import device_engine
from benchmarks.gpu_check.context import StageContext
from benchmarks.gpu_check.facts_stage import import_torch
from diffusion.samplers import make_table
from runtime.chain.device import DeviceChain

CASES = (("bf16", 1), ("bf16", 64), ("fp32", 1))


def run(context: StageContext, cases: tuple[tuple[str, int], ...] = CASES) -> None:
    """The stage.

    Args:
        context: of the stage.
        cases: (precision, batch size).
    """
    import_torch()
    lines: list[str] = []
    for precision, batch_size in cases:
        engine = device_engine(context, precision)
        table = make_table(engine.process)
        chain = DeviceChain(engine, table, batch_size)
        try:
            seconds = []
            for _ in range(2):  # the first warms up
                chain.begin([0] * batch_size, range(batch_size))
                begin = time.perf_counter()
                chain.run()
                seconds.append(time.perf_counter() - begin)
            x, finite = chain.x, chain.finite()
        finally:
            chain.close()
        name = f"{precision}, batch {batch_size}, {len(table)} steps"
        context.check(f"{name}: finite", bool(finite.all() and np.isfinite(x).all()))
        entry: dict[str, Any] = {"precision": precision, "batch_size": batch_size, "steps": len(table)}
        entry |= {"engine": engine.name, "seconds": seconds[1], "images_per_second": batch_size / seconds[1]}
        entry |= {"graph": chain.graph, "fall_backs": chain.fall_backs, "ms_per_step": 1e3 * seconds[1] / len(table)}
        context.add("chains", entry)
        lines.append(f"{name}: {seconds[1]:.3f} s, {entry['images_per_second']:.2f} images/s, {chain.graph}")
        context.record("lines", lines)
