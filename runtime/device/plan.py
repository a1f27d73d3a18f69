"""How a number of samples is spread over chains on a GPU, and the memory that takes, before any of it is taken."""

from __future__ import annotations

from dataclasses import dataclass

from diffusion.errors import InputError
from diffusion.step_table import StepTable
from runtime.device.chain_buffers import chain_layout
from runtime.device.interface import DeviceEngine, mebibytes

MAX_CHAINS = 2
"""In flight at once: while the host reads one batch, and where one alone leaves the GPU idle, the other runs."""

# A batch of this many elements fills a GPU, and this many samples do where each is small.
_ELEMENTS_FOR_FULL_SPEED = 1 << 20
_MAX_DEFAULT_BATCH = 256


@dataclass(frozen=True)
class DevicePlan:
    """What will run.

    Attributes:
        batch_size: samples of each chain.
        chains: in flight at once.
        chain_bytes: device memory that one chain takes: its buffers, and what the engine says a bound call takes.
        call_bytes_known: whether the engine says so.
        free_bytes: on the device when this was planned.
    """

    batch_size: int
    chains: int
    chain_bytes: int
    call_bytes_known: bool
    free_bytes: int

    def __str__(self) -> str:
        chains = "a chain" if self.chains == 1 else f"{self.chains} chains in flight, each"
        beside = "" if self.call_bytes_known else ", beside what the network takes"
        needed = self.chains * self.chain_bytes
        return (
            f"{chains} of {self.batch_size} samples; {mebibytes(needed)} of device memory{beside}, "
            f"{mebibytes(self.free_bytes)} are free"
        )


def device_batch_size(engine: DeviceEngine, num: int, wanted: int | None) -> int:
    """Samples per chain when `num` are drawn, within what the engine takes; slots that are left over stay idle.

    Raises:
        InputError: a batch size was asked for that the engine does not take.
    """
    smallest, largest = engine.batch_range()
    if wanted is not None:
        if wanted < smallest or (largest is not None and wanted > largest):
            takes = f"{smallest} or more" if largest is None else f"{smallest} to {largest}"
            raise InputError(
                f"batch size is {wanted}, and {engine.name} takes {takes}; change --batch-size, or build another engine"
            )
        return max(smallest, min(num, wanted))
    size = max(1, min(num, _MAX_DEFAULT_BATCH, _ELEMENTS_FOR_FULL_SPEED // engine.process.sample.num_elements))
    return max(smallest, size if largest is None else min(size, largest))


def plan_device(
    engine: DeviceEngine,
    table: StepTable,
    num: int,
    wanted: int | None,
    with_x_start: bool = False,
    held_bytes: int = 0,
) -> DevicePlan:
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
    call_bytes = engine.call_bytes(size)
    each = chain_layout(engine, table, size, with_x_start).size_bytes + call_bytes
    if each > free:
        fitting = max(1, size * free // each)
        raise InputError(
            f"batch size is {size}, which needs {mebibytes(each)} of device memory; {mebibytes(free)} are free: "
            f"use --batch-size {fitting} or less"
        )
    batches = -(-num // size)
    return DevicePlan(size, max(1, min(MAX_CHAINS, batches, free // each)), each, call_bytes > 0, free)
