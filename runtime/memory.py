"""How many samples fit: sizes are checked before memory is taken."""

from __future__ import annotations

import os
from pathlib import Path

from commands.system import available_bytes, gib
from diffusion.errors import InputError
from diffusion.process import Process
from diffusion.step_table import StepTable
from runtime.engines.interface import Engine
from runtime.host_chain import HostChain

# A batch of this many elements keeps a CPU busy; a larger one gains nothing and only takes memory.
_ELEMENTS_FOR_FULL_SPEED = 1 << 16
_MAX_DEFAULT_BATCH = 64


def default_batch_size(process: Process, num: int) -> int:
    """A batch for `num` samples: large for small images, small for large ones."""
    return max(1, min(num, _MAX_DEFAULT_BATCH, _ELEMENTS_FOR_FULL_SPEED // process.sample.num_elements))


def check_batch_fits(engine: Engine, table: StepTable, batch_size: int) -> None:
    """Refuse a batch that cannot fit in memory, before it is taken.

    The chain's own arrays are counted. If those and a sixteenfold allowance for the network might not fit, one call
    at batch 1, or at the only one that the file takes, tells what the network takes per sample.

    Raises:
        InputError: the batch is < 1, or needs more than the memory that is available.
    """
    if batch_size < 1:
        raise InputError(f"batch size is {batch_size}, expected at least 1")
    own = chain_bytes_per_sample(engine.process, table)
    available = available_bytes()
    needed = own * batch_size
    if needed <= available < needed * 16:
        # An explicit large batch deserves a measurement: activations dwarf the chain's arrays.
        needed = (own + _network_bytes_per_sample(engine, table)) * batch_size
    if needed > available:
        fitting = max(1, available * batch_size // needed)
        raise InputError(
            f"batch size is {batch_size}, which needs {gib(needed)}; {gib(available)} are available: "
            f"use --batch-size {fitting} or less"
        )


def chain_bytes_per_sample(process: Process, table: StepTable) -> int:
    """What a chain on the host holds of each sample, and its result: x, x_start, prediction, histories, finished x."""
    of_one = 4 * process.sample.num_elements
    return of_one * (3 + table.histories) + of_one * process.prediction_channels // process.sample.channels


def _network_bytes_per_sample(engine: Engine, table: StepTable) -> int:
    before = _resident_bytes()
    num = engine.fixed_batch or 1
    chain = HostChain(engine, table, num)
    chain.begin([0], [0])
    chain.step()
    return max(0, _resident_bytes() - before - chain.buffer_bytes) // num


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
