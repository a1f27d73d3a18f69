"""Chains on the device beside the same ones on the host: what differs, in bits."""

from __future__ import annotations

import numpy as np

from benchmarks.device.device_arrays import differing_elements
from diffusion.step_table import StepTable
from runtime.chain.device import DeviceChain
from runtime.chain.host import HostChain
from runtime.chain.launchers import GRAPH_KINDS
from runtime.device.interface import DeviceEngine
from runtime.engines.interface import Engine

SEEDS, INDICES = (5, 2**63 + 1, 7, 5, 0), (100, 2**64 - 1, 3, 101, 0)
PARTS = ("x", "x_start", "row", "finite")


def state_of(chain) -> dict[str, np.ndarray]:
    """What a chain has come to."""
    found = {part: getattr(chain, part) for part in PARTS}
    return {part: np.ascontiguousarray(value() if callable(value) else value) for part, value in found.items()}


def run_on_host(engine: Engine, table: StepTable, num: int) -> dict[str, np.ndarray]:
    """A whole chain of so many samples."""
    host = HostChain(engine, table, num, with_x_start=True)
    host.begin(SEEDS[:num], INDICES[:num])
    for _ in range(len(table)):
        host.step()
    return state_of(host)


def chain_problems(
    engine: DeviceEngine,
    table: StepTable,
    expected: dict[str, np.ndarray],
    kinds: tuple[str, ...] = GRAPH_KINDS,
) -> list[str]:
    """Run a chain with each way to launch it: at once, and in pieces; what differs from the host."""
    problems = []
    num = len(expected["x"])
    for kind in kinds:
        chain = DeviceChain(engine, table, num, with_x_start=True, graph=kind)
        try:
            if chain.graph != kind:
                problems.append(f"{kind} was asked for, {chain.graph} is used: {'; '.join(chain.fall_backs)}")
            for pieces in ((len(table),), (1, 3, len(table) - 4)):
                chain.begin(SEEDS[:num], INDICES[:num])
                for rows in pieces:
                    chain.enqueue(rows)
                chain.wait()
                found = state_of(chain)
                counts = {part: differing_elements(found[part], expected[part]) for part in PARTS}
                problems += [
                    f"{kind}, {len(pieces)} pieces: {count} of {part} differ" for part, count in counts.items() if count
                ]
        finally:
            chain.close()
    return problems
