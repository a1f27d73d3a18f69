"""A chain written out on the host with the C++ step, for networks that read and write 16-bit types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from diffusion.normal import draw_number, normal_batch
from diffusion.process import Process
from diffusion.step_table import StepTable
from runtime.formats.precision import ELEMENT_TYPES, to_element_type

Bind = Callable[[np.ndarray, np.ndarray, np.ndarray], Callable[[], None]]


@dataclass(frozen=True)
class ChainState:
    """What a chain has come to: float32 [N, C, H, W] twice, int32 [N], bool [N]."""

    x: np.ndarray
    x_start: np.ndarray
    row: np.ndarray
    finite: np.ndarray


def run_on_host(
    kernels: ModuleType,
    process: Process,
    table: StepTable,
    io_type: str,
    bind: Bind,
    seeds: Sequence[int],
    sample_indices: Sequence[int],
) -> ChainState:
    """Run a whole chain.

    Args:
        kernels: the compiled module.
        process: of the network.
        table: the rows.
        io_type: of what the network reads and writes; bfloat16 is uint16 here.
        bind: as an engine's, to arrays of that type.
        seeds, sample_indices: N each.
    """
    num, kind = len(seeds), ELEMENT_TYPES[io_type].host
    seed, sample_index = np.array(seeds, np.uint64), np.array(sample_indices, np.uint64)
    x = normal_batch(process.sample.chw, seed, sample_index, draw_number(None))
    next_input = x if io_type == "float32" else to_element_type(x, io_type)
    prediction = np.zeros((num, process.prediction_channels, *x.shape[2:]), kind)
    timesteps = table.timesteps.astype(np.int32)
    state = {
        "x": x,
        "x_start": np.zeros_like(x),
        "prediction": prediction,
        "t": np.full(num, timesteps[0], np.float32),
        "row": np.zeros(num, np.int32),
        "flag": np.zeros(num, np.int32),
    }
    histories = {name: np.zeros_like(x) for name in ("h1", "h2")[: table.histories]}
    step = kernels.HostStep(
        table.cast(),
        timesteps,
        histories=table.histories,
        learned=table.learned,
        h2_is_x_start=table.h2_is_x_start,
        clip=table.clip,
        seed=seed,
        sample_index=sample_index,
        next_input=None if io_type == "float32" else next_input,
        **state,
        **histories,
    )
    call = bind(next_input, state["t"], prediction)
    for _ in range(len(table)):
        call()
        step.run()
    return ChainState(x, state["x_start"], state["row"], state["flag"] == 0)
