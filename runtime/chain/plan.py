"""How a number of samples is spread over chains, and the memory that takes, before any of it is taken."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from commands.system import available_bytes, gib
from diffusion.errors import InputError
from diffusion.process import Process
from diffusion.step_table import StepTable
from runtime.chain.device_buffers import chain_layout
from runtime.chain.host import HostChain
from runtime.conditions import neutral_conditions
from runtime.device.interface import DeviceEngine, mebibytes
from runtime.engines.interface import Engine

MAX_CHAINS = 2
"""In flight at once on a GPU: one runs while the host reads the other, or where one alone leaves the GPU idle."""


# A batch of so many elements, or so many samples where each is small, keeps a CPU, or a GPU, busy: a larger one gains
# nothing and only takes memory.
_HOST_ELEMENTS, _HOST_SAMPLES = 1 << 16, 64
_DEVICE_ELEMENTS, _DEVICE_SAMPLES = 1 << 20, 256


@dataclass(frozen=True)
class ChainPlan:
    """What will run.

    Attributes:
        batch_size: samples of each batch; the last one may have fewer.
        chains: in flight at once.
        with_x_start: whether the chains keep x_start, for a trajectory.
        summary: for the user, where a GPU's memory is taken; else empty.
    """

    batch_size: int
    chains: int = 1
    with_x_start: bool = False
    summary: str = ""


def host_batch_size(engine: Engine, num: int, wanted: int | None) -> int:
    """Samples per batch when `num` are drawn on the host.

    Args:
        engine: the network.
        num: samples.
        wanted: a batch size that was asked for; None to choose.
    """
    size = wanted or max(1, min(_HOST_SAMPLES, _HOST_ELEMENTS // engine.process.sample.num_elements))
    return engine.fixed_batch or min(num, size)


def check_host_batch(engine: Engine, table: StepTable, batch_size: int) -> None:
    """Refuse a batch that the engine does not take or that does not fit into memory, before it is taken.

    The chain's own arrays are counted. If those and a sixteenfold allowance for the network might not fit, one call
    at batch 1, or at the only one that the file takes, tells what the network takes per sample.

    Raises:
        InputError: the engine takes no such batch, or it needs more than the memory that is available.
    """
    engine.check_batch(batch_size)
    own = host_bytes_per_sample(engine.process, table)
    available = available_bytes()
    needed = own * batch_size
    if needed <= available < needed * 16:
        # An explicit large batch deserves a measurement: activations dwarf the chain's arrays.
        needed = (own + _network_bytes_per_sample(engine, table)) * batch_size
    if needed > available:
        fitting = max(1, available * batch_size // needed)
        raise InputError(
            f"batch size is {batch_size}, which needs {gib(needed)}; {gib(available)} are available: "
            f"use `batch_size={fitting}` or less"
        )


def host_bytes_per_sample(process: Process, table: StepTable) -> int:
    """What a chain on the host holds of each sample, and its result: x, x_start, prediction, histories, finished x."""
    of_one = 4 * process.sample.num_elements
    given = sum(each.num_elements * np.dtype(each.type).itemsize for each in process.conditions)
    return of_one * (3 + table.histories) + of_one * process.prediction_channels // process.sample.channels + given


def _network_bytes_per_sample(engine: Engine, table: StepTable) -> int:
    before = _resident_bytes()
    num = engine.fixed_batch or 1
    chain = HostChain(engine, table, num)
    chain.begin([0], [0], conditions=neutral_conditions(engine.process.conditions, 1))
    chain.step()
    return max(0, _resident_bytes() - before - chain.buffer_bytes) // num


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def device_batch_size(engine: DeviceEngine, num: int, wanted: int | None) -> int:
    """Samples per chain when `num` are drawn, within what the engine takes; slots that are left over stay idle.

    Raises:
        InputError: a batch size was asked for that the engine does not take.
    """
    smallest, largest = engine.batch_range()
    if wanted is not None:
        engine.check_batch(wanted)
        return max(smallest, min(num, wanted))
    size = max(1, min(num, _DEVICE_SAMPLES, _DEVICE_ELEMENTS // engine.process.sample.num_elements))
    return max(smallest, size if largest is None else min(size, largest))


def plan_device(
    engine: DeviceEngine,
    table: StepTable,
    num: int,
    wanted: int | None,
    with_x_start: bool = False,
    held_bytes: int = 0,
) -> ChainPlan:
    """Decide on a batch and on how many chains are in flight.

    Args:
        engine, table: what will run.
        num: samples to draw.
        wanted: a batch size that was asked for; None to choose.
        with_x_start: whether the chains keep x_start.
        held_bytes: device memory that chains hold which will make room.

    Raises:
        InputError: a batch that the engine does not take, or that does not fit into the memory that is free.
    """
    size = device_batch_size(engine, num, wanted)
    free = engine.memory.free_bytes() + held_bytes
    call_bytes = engine.call_bytes(size)  # 0 where the engine does not know
    each = chain_layout(engine, table, size, with_x_start).size_bytes + call_bytes
    if each > free:
        fitting = max(1, size * free // each)
        raise InputError(
            f"batch size is {size}, which needs {mebibytes(each)} of device memory; {mebibytes(free)} are free: "
            f"use `batch_size={fitting}` or less"
        )
    chains = max(1, min(MAX_CHAINS, -(-num // size), free // each))
    in_flight = "a chain" if chains == 1 else f"{chains} chains in flight, each"
    beside = "" if call_bytes else ", beside what the network takes"
    summary = (
        f"{in_flight} of {size} samples; {mebibytes(chains * each)} of device memory{beside}, "
        f"{mebibytes(free)} are free"
    )
    return ChainPlan(size, chains, with_x_start, summary)
