"""The chain in PyTorch, with gradients: the row's arithmetic as `diffusion.step_table` defines it, in float32.

Terms are summed in the order of kernels/step.h and each operation is rounded once, so that a table that was fitted here
draws the same numbers there. Only of tables that add no noise: the gradient is that of a map from x_T to x_0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from diffusion.step_table import StepTable

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(x [N, C, H, W], t [N]) → prediction [N, C or 2C, H, W], of a network whose conditions are given."""


@dataclass(frozen=True)
class RowKind:
    """How all rows of a chain are applied; the attributes of `StepTable` by the same names."""

    clip: float
    histories: int
    h2_is_x_start: bool

    @classmethod
    def of(cls, table: StepTable) -> RowKind:
        """The kind of a table's rows, none of which adds noise."""
        assert not table.column("s").any()
        return cls(table.clip, table.histories, table.h2_is_x_start)


@dataclass(frozen=True)
class ChainState:
    """What a chain holds between two rows: x and its histories, and what the last row predicted of x_0."""

    x: torch.Tensor
    histories: tuple[torch.Tensor, ...]
    x_start: torch.Tensor

    @classmethod
    def begin(cls, x: torch.Tensor, kind: RowKind) -> ChainState:
        """Before the first row: histories are 0."""
        return cls(x, (torch.zeros_like(x),) * kind.histories, torch.zeros_like(x))


def predict_x_start(kind: RowKind, row: torch.Tensor, x: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    """clip(u·x + v·p), p the first C channels of the prediction. Arguments as in `apply_row`."""
    return torch.clamp(row[0] * x + row[1] * prediction[:, : x.shape[1]], -kind.clip, kind.clip)


def apply_row(kind: RowKind, row: torch.Tensor, state: ChainState, prediction: torch.Tensor) -> ChainState:
    """One row.

    Args:
        kind: of the table.
        row: [13], columns as `diffusion.step_table.COLUMNS`.
        state: before it.
        prediction: [N, C or 2C, H, W].
    """
    _, _, a, q, b, c1, c2, d, f, g1, g2, _, _ = row.unbind()
    x = state.x
    x_start = predict_x_start(kind, row, x, prediction)
    x_next = a * x + q * prediction[:, : x.shape[1]] + b * x_start
    for c, history in zip((c1, c2), state.histories, strict=False):
        x_next = x_next + c * history
    if not kind.histories:
        return ChainState(x_next, (), x_start)
    h1_next = d * x + f * x_start
    for g, history in zip((g1, g2), state.histories, strict=False):
        h1_next = h1_next + g * history
    if kind.histories == 1:
        return ChainState(x_next, (h1_next,), x_start)
    return ChainState(x_next, (h1_next, x_start if kind.h2_is_x_start else state.histories[0]), x_start)


def run_rows(
    kind: RowKind,
    coefficients: torch.Tensor,
    timesteps: torch.Tensor,
    predict: Predict,
    x: torch.Tensor,
    recompute: bool = False,
) -> torch.Tensor:
    """x_0 of a whole chain, [N, C, H, W].

    Args:
        kind: of the table.
        coefficients: [R, 13].
        timesteps: [R], what the network is given; whole numbers or, while they are fitted, any.
        predict: the network.
        x: x_T, [N, C, H, W].
        recompute: forget what the network computed, and compute it anew for the gradient: the memory of one network
            call instead of R (Chen et al. 2016).
    """
    state = ChainState.begin(x, kind)
    for row, timestep in zip(coefficients, timesteps, strict=True):
        t = timestep.expand(len(x))
        prediction = checkpoint(predict, state.x, t, use_reentrant=False) if recompute else predict(state.x, t)
        state = apply_row(kind, row, state, prediction)
    return state.x


def run_table(table: StepTable, predict: Predict, x: torch.Tensor) -> torch.Tensor:
    """x_0 of a table as the runtime would draw it, [N, C, H, W], without gradients."""
    coefficients, timesteps = (torch.tensor(each).to(x) for each in (table.cast(), table.timesteps))
    with torch.no_grad():
        return run_rows(RowKind.of(table), coefficients, timesteps, predict, x)


def saved_bytes(predict: Predict, x: torch.Tensor, t: torch.Tensor) -> int:
    """What one network call keeps for its gradient."""
    sizes: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        predict(x.detach().requires_grad_(), t)
    return sum(sizes.values())
