"""The chain on the GPU has the bits of the chain on the host, whatever launches its rows."""

from __future__ import annotations

import numpy as np

from benchmarks.gpu_check.context import StageContext, StageSkippedError
from benchmarks.gpu_check.device_arrays import differing_elements
from benchmarks.gpu_check.echo_engine import EchoEngine
from benchmarks.gpu_check.facts_stage import import_torch
from benchmarks.gpu_check.host_loop import ChainState, run_on_host
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from diffusion.samplers import make_table
from diffusion.step_table import StepTable
from runtime.chain.device import DeviceChain
from runtime.chain.host import HostChain
from runtime.chain.launchers import GRAPH_KINDS
from runtime.device.interface import DeviceEngine

SEEDS, INDICES = (5, 2**63 + 1, 7, 5), (100, 2**64 - 1, 3, 101)
SAMPLERS = {"ddpm": 0, "dpmpp_2m": 1, "unipc": 2}
"""A sampler for each number of histories."""
NUM_STEPS = 11
SHAPE = SampleShape(3, 16, 16)
ODD_SHAPE = SampleShape(2, 5, 7)
"""Whose elements are not whole eights."""


def run(context: StageContext) -> None:
    """The stage."""
    problems = echo_problems(context)
    context.check("echo network: loop, graph and launches as on the host", not problems, "; ".join(problems[:5]))
    problems = idle_sample_problems(context)
    context.check("idle samples are left alone", not problems, "; ".join(problems))
    try:
        import_torch()
    except StageSkippedError as error:
        context.record("lines", [f"the Gaussian network in PyTorch is left out: {error}"])
        return
    problems = gaussian_problems(context)
    context.check("Gaussian network in PyTorch: as HostChain", not problems, "; ".join(problems[:5]))


def a_process(shape: SampleShape, learned: bool = False) -> Process:
    """Of 1000 timesteps."""
    schedule = NoiseSchedule.make("linear")
    return Process(shape, schedule, variance_type="learned_range" if learned else "fixed_large")


def echo_problems(context: StageContext) -> list[str]:
    """Every type of network input and of timesteps, every number of histories, a learned variance."""
    problems = []
    for shape, sampler, learned, io_type, t_type in (
        *((SHAPE, sampler, False, "float32", "float32") for sampler in SAMPLERS),
        *((SHAPE, "ddpm", True, io_type, "int64") for io_type in ("float32", "float16", "bfloat16")),
        *((ODD_SHAPE, sampler, False, "bfloat16", "int64") for sampler in SAMPLERS),
    ):
        process = a_process(shape, learned)
        table = make_table(process, sampler, NUM_STEPS)
        engine = EchoEngine(process, io_type, t_type, context.memory, context.kernels)
        expected = run_on_host(context.kernels, process, table, io_type, engine.bind, SEEDS, INDICES)
        name = f"{sampler} {io_type}{' learned' if learned else ''}"
        problems += chain_problems(engine, table, expected, name)
    return problems


def gaussian_problems(context: StageContext, device: str = "cuda") -> list[str]:
    """The closed-form network, captured by PyTorch, against `HostChain` with NumPy's."""
    from benchmarks.gpu_check.closed_form import GaussianEngine, GaussianNetwork
    from benchmarks.gpu_check.module_engine import ModuleEngine

    problems = []
    for sampler, learned in (*((sampler, False) for sampler in SAMPLERS), ("ddpm", True)):
        process = a_process(SHAPE, learned)
        table = make_table(process, sampler, NUM_STEPS)
        network = GaussianNetwork(process)
        host = HostChain(GaussianEngine(network), table, len(SEEDS), with_x_start=True)
        host.begin(SEEDS, INDICES)
        for _ in range(len(table)):
            host.step()
        assert host.x_start is not None
        expected = ChainState(host.x, host.x_start, host.row, host.finite())
        engine = ModuleEngine(network.to(device), process, "float32", context.memory, "Gaussian", device=device)
        kinds = GRAPH_KINDS if device == "cuda" else ("none",)
        problems += chain_problems(engine, table, expected, f"Gaussian {sampler}", kinds)
    return problems


def idle_sample_problems(context: StageContext) -> list[str]:
    """Two of four slots are used: the others stay as they were."""
    process = a_process(SHAPE)
    table = make_table(process, "ddpm", NUM_STEPS)
    engine = EchoEngine(process, "float32", "int64", context.memory, context.kernels)
    expected = run_on_host(context.kernels, process, table, "float32", engine.bind, SEEDS[:2], INDICES[:2])
    problems = []
    for kind in GRAPH_KINDS:
        chain = DeviceChain(engine, table, len(SEEDS), graph=kind)
        try:
            chain.begin(SEEDS[:2], INDICES[:2])
            idle = chain.x[2:]
            chain.run()
            if differing_elements(chain.x[:2], expected.x):
                problems.append(f"{kind}: the samples beside idle ones differ")
            if differing_elements(chain.x[2:], idle):
                problems.append(f"{kind}: idle samples changed")
        finally:
            chain.close()
    return problems


def chain_problems(
    engine: DeviceEngine,
    table: StepTable,
    expected: ChainState,
    name: str,
    kinds: tuple[str, ...] = GRAPH_KINDS,
) -> list[str]:
    """Run a chain with each way to launch it: at once, and in pieces; what differs from the host."""
    problems = []
    for kind in kinds:
        chain = DeviceChain(engine, table, len(SEEDS), with_x_start=True, graph=kind)
        try:
            if chain.graph != kind:
                problems.append(f"{name}: {kind} was asked for, {chain.graph} is used: {'; '.join(chain.fall_backs)}")
            for pieces in ((len(table),), (1, 3, len(table) - 4)):
                chain.begin(SEEDS, INDICES)
                for rows in pieces:
                    chain.enqueue(rows)
                chain.wait()
                x_start = chain.x_start
                assert x_start is not None
                found = ChainState(chain.x, x_start, chain.row, chain.finite())
                problems += [f"{name}, {kind}, {len(pieces)} pieces: {text}" for text in _compare(found, expected)]
        finally:
            chain.close()
    return problems


def _compare(found: ChainState, expected: ChainState) -> list[str]:
    pairs = {
        part: (np.ascontiguousarray(getattr(found, part)), getattr(expected, part))
        for part in ("x", "x_start", "row", "finite")
    }
    counts = {part: differing_elements(*pair) for part, pair in pairs.items()}
    return [f"{count} of {part} differ" for part, count in counts.items() if count]
