"""The U-Net in a chain: its loop, its graph and its launches agree bit for bit, and its predictions with the CPU's."""

from __future__ import annotations

import numpy as np

from benchmarks.device.device_arrays import differing_elements
from benchmarks.device.network_error import TOLERANCES, largest_error
from diffusion.samplers import make_table
from runtime.chain.device import DeviceChain
from runtime.chain.launchers import GRAPH_KINDS
from runtime.device.interface import DeviceEngine

NUM_STEPS = 12


def check_predictions(machine, findings, engine: DeviceEngine, batch_sizes) -> None:
    """Batches of different samples and timesteps, against PyTorch in float32 on the CPU."""
    reference, tolerance = machine.reference(), TOLERANCES[engine.precision]
    errors = {batch_size: largest_error(engine, reference, batch_size) for batch_size in batch_sizes}
    findings.record(f"prediction_errors_{engine.precision}", errors)
    findings.add("lines", f"{engine.name}: predictions at most {max(errors.values()):.1e} from float32 on the CPU")
    assert max(errors.values()) <= tolerance, errors


def check_launches(machine, findings, engine: DeviceEngine, batch_size: int) -> None:
    """The same chain with each way to launch it, and twice without a graph: whether the network repeats itself."""
    table = make_table(engine.process, num_steps=NUM_STEPS)
    found: dict[str, np.ndarray] = {}
    for kind in ("none", *GRAPH_KINDS):
        chain = DeviceChain(engine, table, batch_size, graph=kind)
        try:
            assert chain.graph == kind, chain.fall_backs
            if kind == "step":
                nodes = machine.kernels.cuda_graph_node_types(chain.call.graph(chain.stream))
                findings.record(f"nodes_{engine.precision}", nodes)
            chain.begin(range(batch_size), range(batch_size))
            chain.enqueue(NUM_STEPS)
            chain.wait()
            found["first" if kind == "none" and "first" not in found else kind] = chain.x
        finally:
            chain.close()
    broken = [kind for kind, x in found.items() if not np.isfinite(x).all()]
    assert not broken
    differing = {kind: differing_elements(found[kind], found["first"]) for kind in GRAPH_KINDS}
    findings.record(f"differing_{engine.precision}", differing)
    repeats = not differing.pop("none")
    findings.record(f"repeats_{engine.precision}", repeats)
    if repeats:
        assert not any(differing.values()), differing
    else:
        findings.add("lines", "PyTorch's own kernels do not repeat their bits here: launches are not compared")
